"""How a device's memory is spent, from shapes alone: before anything is loaded, and for a GPU that need not be there.

Buffers are not estimated by formula: a runner is made on torch's meta device, where tensors have shapes and no memory,
and its own are added up. What the driver takes for graphs is estimated, what else it and its libraries take a reserve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import msgspec
import torch
from torch import Tensor

from app.contract.config import EngineConfig
from app.kernels.backend import choose_backend
from app.models.config import ModelConfig
from app.quant.placement import Placement
from app.runner.errors import RunnerError
from app.runner.formats import find_format
from app.runner.kv_plan import KVCachePlan, Sizes

DRIVER_BYTES = 640 << 20
"""Bytes of a CUDA context with the modules of torch and cuBLAS; a part of the reserve where no context exists yet."""
MARGIN_BYTES = 384 << 20
"""Bytes of cuBLAS workspaces, compiled kernels, and the allocator's rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes that a runner holds beside its pages, by what they are for."""

    weights: int
    """Weights, tables of rotary angles and the workspace of products."""
    activations: int
    """Buffers of the largest step."""
    logits: int
    """Logits of the largest step."""
    sampling: int
    """Parameters, vocabulary-wide tables and workspaces; tables that only some requests ask for are included."""
    inputs: int
    """Token ids, positions, block tables, workspace of attention, and the blocks of rows that pad a step."""
    graphs: int
    """Recordings of steps, all that there may come to be."""

    @property
    def total(self) -> int:
        """Bytes of all of these."""
        return self.weights + self.activations + self.logits + self.sampling + self.inputs + self.graphs


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """How a device's memory is split; the parts sum to no more than ``memory``."""

    memory: int
    """Bytes that may be used."""
    reserve: int
    """Bytes left to the driver and its libraries."""
    footprint: Footprint
    kv: KVCachePlan

    @property
    def kv_cache(self) -> int:
        """Bytes of all pages."""
        return self.kv.nbytes

    def rows(self) -> list[tuple[str, int]]:
        """(name, bytes) of each part."""
        fixed = self.footprint
        return [
            ("weights", fixed.weights),
            ("activations", fixed.activations),
            ("logits", fixed.logits),
            ("sampling", fixed.sampling),
            ("inputs", fixed.inputs),
            ("graphs", fixed.graphs),
            ("reserve", self.reserve),
            ("KV cache", self.kv_cache),
        ]


Measure = Callable[[EngineConfig, Placement], Footprint]
"""The footprint of a runner with that config and placement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A device's memory."""

    memory: int
    """Bytes that may be used."""
    reserve: int
    """Bytes of these that the engine leaves to the driver and its libraries."""


def plan_memory(
    model: ModelConfig, config: EngineConfig, placement: Placement, budget: Budget, measure: Measure
) -> MemoryPlan:
    """Splits a device's memory: the runner's footprint first; the KV cache gets the rest, or what the config names.

    Args:
        config: with the formats chosen (:func:`app.runner.formats.choose_formats`).

    Raises:
        RunnerError: memory is too small; one line that says which settings to change, and to what.
    """
    sizes, asked = Sizes(model, config), config.max_model_len
    footprint = measure(config, placement)
    left = budget.memory - budget.reserve - footprint.total
    needed = sizes.nbytes(sizes.least())
    given = config.kv_cache_memory
    if given is not None and given < needed:
        length = sizes.longest(given)
        shorter = f", or lower max_model_len to {length}" if asked and length else ""
        raise RunnerError(
            f"kv_cache_memory = {given} bytes is too small for one sequence of {asked or sizes.block_size} tokens; "
            f"raise it to {needed}{shorter}"
        )
    if left < (given or needed):
        problem = (
            f"{gib(budget.memory)} are too little: weights, steps and the driver take {gib(budget.memory - left)}, the "
            f"KV cache {gib(given or needed)}"
        )
        changes = _Changes(model, config, placement, budget, measure).to_have(left, given or needed)
        raise RunnerError(f"{problem}; {', or '.join(changes)}")
    counts = sizes.split(left if given is None else given)
    return MemoryPlan(memory=budget.memory, reserve=budget.reserve, footprint=footprint, kv=sizes.plan(counts))


@dataclass(frozen=True, slots=True)
class _Changes:
    """Finds settings under which a model fits a device's memory that does not fit it now."""

    model: ModelConfig
    config: EngineConfig
    placement: Placement
    budget: Budget
    measure: Measure

    def to_have(self, left: int, wanted: int) -> Iterator[str]:
        """Changes of settings that are each enough, and how much memory would be.

        Args:
            left: bytes for the KV cache as things are.
            wanted: bytes that it should have.
        """
        config = self.config
        sizes = Sizes(self.model, config)
        if (length := sizes.longest(left)) > 0:
            if config.kv_cache_memory is not None:
                yield f"lower kv_cache_memory to {sizes.nbytes(sizes.split(left))}"
            elif config.max_model_len is not None:
                yield f"lower max_model_len to {length}"
        if config.kv_cache_memory is None and not self.model.latents:
            int8_pages = Sizes(self.model, msgspec.structs.replace(config, kv_cache_dtype="int8"))
            if left >= int8_pages.nbytes(int8_pages.least()) < wanted:
                yield "set kv_cache_dtype to int8"
        tokens, rows = min(config.max_num_batched_tokens, 512), min(config.max_num_seqs, 16)
        fewer = msgspec.structs.replace(config, max_num_batched_tokens=tokens, max_num_seqs=rows, max_logit_rows=rows)
        if fewer != config and self._left(fewer, self.placement) >= wanted:
            yield f"lower max_num_batched_tokens to {tokens}, max_num_seqs and max_logit_rows to {rows}"
        eager = msgspec.structs.replace(config, enforce_eager=True)
        if eager != config and self._left(eager, self.placement) >= wanted:
            yield "set enforce_eager"
        if config.quantization == "none":
            weights = find_format("int8", self.placement.dtype, choose_backend(self.placement.device))
            int8 = replace(self.placement, format=weights)
            if self._left(msgspec.structs.replace(config, quantization="int8"), int8) >= wanted:
                yield "set quantization to int8"
        yield f"take {gib(self.budget.memory - left + wanted)} of memory"

    def _left(self, config: EngineConfig, placement: Placement) -> int:
        return self.budget.memory - self.budget.reserve - self.measure(config, placement).total


def bytes_of(root: object, device: torch.device, packages: tuple[str, ...] = ("app.",)) -> int:
    """Bytes of the device's tensors that an object and the objects that it holds have; shared memory counts once.

    Args:
        packages: beginnings of the modules' names whose objects are looked into.
    """
    seen, storages = set[int](), dict[int, int]()

    def walk(value: object) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            if value.device.type == device.type:
                storages[value.untyped_storage()._cdata] = value.untyped_storage().nbytes()
        elif isinstance(value, dict):
            for item in value.values():
                walk(item)
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item)
        elif type(value).__module__.startswith(packages):
            for name in (*getattr(value, "__dict__", ()), *_slots(type(value))):
                walk(getattr(value, name, None))

    walk(root)
    return sum(storages.values())


def _slots(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        slots = getattr(base, "__slots__", ())
        yield from (slots,) if isinstance(slots, str) else slots


def gib(nbytes: int) -> str:
    """Bytes as text for people, e.g. ``1.50 GiB``."""
    return f"{nbytes / (1 << 30):.2f} GiB"
