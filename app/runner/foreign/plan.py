"""How much models of transformers may keep: their caches grow by themselves, so blocks only count their tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from app.contract.config import EngineConfig
from app.contract.info import KVCacheGroup, KVCacheSpec
from app.runner.device import DTYPES, META
from app.runner.errors import RunnerError
from app.runner.foreign.library import DEFAULT_CONTEXT, ForeignConfig
from app.runner.foreign.model import ForeignModel
from app.runner.kv_plan import DEFAULT_MEMORY
from app.runner.memory import Budget, gib

_STEP_SHARE = 4
"""Part of what weights leave of a GPU's memory that steps get, 1 / 4: nobody knows what transformers takes in one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes that a model and its sequences take."""

    weights: int
    """Bytes of all weights."""
    per_token: int
    """Bytes that a sequence keeps for each of its tokens."""
    per_sequence: int
    """Bytes that a sequence keeps whatever its length, such as recurrent states."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignPlan:
    """Size of all caches together, and of the sequences that they allow."""

    spec: KVCacheSpec
    max_model_len: int
    """Tokens of the longest sequence."""
    states: int
    """Bytes of what all sequences keep whatever their length."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences that are kept at once."""
        return self.spec.groups[0].num_blocks * self.spec.block_size

    @property
    def nbytes(self) -> int:
        """Bytes of all caches together, at most."""
        return self.states + sum(group.num_blocks * group.bytes_per_block for group in self.spec.groups)


def plan_caches(source: ForeignConfig, sizes: Sizes, config: EngineConfig, memory: int) -> ForeignPlan:
    """Splits memory into blocks that count tokens, or takes the number of blocks that the config names.

    Args:
        memory: bytes for all caches together.

    Raises:
        RunnerError: ``max_model_len`` is beyond the model, or there is no room for one sequence.
    """
    asked, size, context = config.max_model_len, config.block_size, source.context_length
    if asked is not None and context is not None and asked > context:
        raise RunnerError(f"max_model_len = {asked} is outside the model's context of {context} tokens")
    longest = asked or context or DEFAULT_CONTEXT
    states, block_bytes = sizes.per_sequence * config.max_num_seqs, sizes.per_token * size
    room = max(0, memory - states) // block_bytes
    if config.num_blocks is not None:
        (room,) = (config.num_blocks,) if isinstance(config.num_blocks, int) else config.num_blocks
    needed = -(-asked // size) if asked else 1
    if room < needed:
        lower = "lower max_model_len" if asked and room else "lower max_num_seqs"
        raise RunnerError(
            f"kv_cache_memory = {memory} bytes is too small: states of max_num_seqs = {config.max_num_seqs} sequences "
            f"take {states} bytes, {asked or size} tokens {needed * block_bytes}; raise kv_cache_memory or {lower}"
        )
    # More than all sequences can have would only make the books longer.
    num_blocks = min(room, config.max_num_seqs * -(-longest // size))
    group = KVCacheGroup(
        kind="counted",
        layers=tuple(range(source.num_layers)),
        dtype=config.dtype,
        bytes_per_block=block_bytes,
        num_blocks=num_blocks,
    )
    spec = KVCacheSpec(block_size=size, groups=[group])
    return ForeignPlan(spec=spec, max_model_len=min(longest, num_blocks * size), states=states)


def measure(source: ForeignConfig, config: EngineConfig) -> Sizes:
    """Bytes from shapes alone: nothing is loaded.

    Args:
        config: with its dtype decided.

    Raises:
        RunnerError: the model does not run without memory.
    """
    try:
        model = ForeignModel(source.build(META, DTYPES[config.dtype]))
    except RunnerError as error:
        raise RunnerError(f"{error}; without its weights it cannot be planned") from None
    return Sizes(weights=model.weight_bytes, per_token=model.bytes_per_token, per_sequence=model.bytes_per_sequence)


def cache_memory(config: EngineConfig, left: int, device: torch.device) -> int:
    """Bytes for all caches together: what the config names; else a fixed sum on a CPU, on a GPU most of what is left.

    Args:
        left: bytes that are free once the weights are there.

    Raises:
        RunnerError: there is not as much.
    """
    share = left - left // _STEP_SHARE if device.type == "cuda" else DEFAULT_MEMORY
    memory = share if config.kv_cache_memory is None else config.kv_cache_memory
    if memory > left:
        raise RunnerError(
            f"a KV cache of {memory} bytes does not fit into the {max(0, left)} left; lower kv_cache_memory"
        )
    return memory


def plan_for_gpu(source: ForeignConfig, config: EngineConfig, budget: Budget) -> tuple[Sizes, ForeignPlan]:
    """How the memory of a GPU would be split; the GPU need not be there.

    Args:
        config: with its dtype decided.

    Raises:
        RunnerError: memory is too small, or the model does not run without memory.
    """
    sizes = measure(source, config)
    left = budget.memory - budget.reserve - sizes.weights
    if left <= 0:
        raise RunnerError(f"{gib(budget.memory)} are too little: the weights alone take {gib(sizes.weights)}")
    memory = cache_memory(config, left, torch.device("cuda"))
    return sizes, plan_caches(source, sizes, config, memory)
