"""How the KV cache's memory is split: which layers form groups, and how many blocks each group gets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from app.contract.config import EngineConfig
from app.contract.info import KVCacheGroup, KVCacheSpec
from app.kernels.pages import KVPages, LatentPages, PageShape
from app.models.config import AttentionConfig, LatentConfig, ModelConfig
from app.runner.errors import RunnerError
from app.runner.kv_cache import kv_cache_dtype, page_shape

DEFAULT_MEMORY = 1 << 30
"""Bytes of the KV cache where the config names none: on a CPU, whose memory other processes use too."""
_TYPICAL_TOKENS = 8192
"""Tokens of the sequence whose needs decide the groups' shares, if the model takes as many."""

Counts = tuple[int, ...]
"""Blocks of each group."""


def kv_groups(model: ModelConfig, config: EngineConfig) -> list[KVCacheGroup]:
    """A rank's KV cache groups: layers of full attention, those of each window, those with recurrent state.

    The layers of a group have pages of one size. Layers that attend over the pages of others are in none.

    A window no shorter than the model's context hides nothing: such layers are of full attention.

    Raises:
        RunnerError: not a dtype that pages can have.
    """
    layers_of: dict[tuple[str, int | None, PageShape], list[int]] = {}
    mixers = model.mixers
    for index in sorted(set(model.keepers)):
        mixer = mixers[index]
        kind, window = "state", None
        if isinstance(mixer, AttentionConfig):
            hides = mixer.window is not None and mixer.window < model.context_length
            kind, window = ("sliding", mixer.window) if hides else ("full", None)
        elif isinstance(mixer, LatentConfig):
            kind = "full"
        layers_of.setdefault((kind, window, page_shape(mixer, config)), []).append(index)
    return [
        KVCacheGroup(
            kind=kind,
            layers=tuple(layers),
            num_kv_heads=_heads(shape)[0],
            head_dim=_heads(shape)[1],
            dtype=config.dtype if kind == "state" else kv_cache_dtype(config),
            bytes_per_block=len(layers) * shape.bytes_per_block(config.block_size),
            window=window,
        )
        for (kind, window, shape), layers in layers_of.items()
    ]


def _heads(shape: PageShape) -> tuple[int, int]:
    """Heads whose keys and values are kept, and their width: latents are as one."""
    match shape:
        case KVPages(num_heads=count, head_dim=width):
            return count, width
        case LatentPages(width=width):
            return 1, width
        case _:
            return 0, 0


@dataclass(frozen=True, slots=True)
class KVCachePlan:
    """Size of the KV cache and of the sequences it allows."""

    spec: KVCacheSpec
    max_model_len: int
    """Tokens of the longest sequence that the model, the config and the whole cache allow."""

    @property
    def num_blocks(self) -> Counts:
        """Blocks of each group."""
        return tuple(group.num_blocks for group in self.spec.groups)

    @property
    def nbytes(self) -> int:
        """Bytes of all pages of all layers."""
        return sum(group.num_blocks * group.bytes_per_block for group in self.spec.groups)

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences that the cache holds at once."""
        full = [group.num_blocks for group in self.spec.groups if group.kind == "full"]
        return min(full) * self.spec.block_size if full else self.num_sequences * self.max_model_len

    @property
    def num_sequences(self) -> int:
        """Sequences of the longest length that the cache holds at once."""
        size, longest = self.spec.block_size, self.max_model_len
        return min(
            group.num_blocks * size // longest
            if group.kind == "full"
            else group.num_blocks // group.most_blocks(longest, size, chunk=size)
            for group in self.spec.groups
        )


class Sizes:
    """Blocks and bytes that sequences take of a model's KV cache groups."""

    def __init__(self, model: ModelConfig, config: EngineConfig) -> None:
        """
        Raises:
            RunnerError: ``max_model_len`` is beyond the model, or the dtype is not one that pages can have.
        """
        asked = config.max_model_len
        if asked is not None and not 0 < asked <= model.context_length:
            raise RunnerError(
                f"max_model_len = {asked} is outside the model's context of {model.context_length} tokens"
            )
        self.groups = kv_groups(model, config)
        self.block_size = config.block_size
        self._asked = asked
        self._context = model.context_length
        self._chunk = config.max_num_batched_tokens

    def least(self, num_tokens: int | None = None, chunk: int | None = None) -> Counts:
        """Blocks that one sequence takes of each group.

        Args:
            num_tokens: tokens of the sequence; None: ``max_model_len`` of the config, or 1 if there is none.
            chunk: tokens of its rows; None: ``block_size``.
        """
        length, chunk = num_tokens or self._asked or 1, chunk or self.block_size
        return tuple(group.most_blocks(length, self.block_size, chunk=chunk) for group in self.groups)

    def nbytes(self, counts: Iterable[int]) -> int:
        """Bytes of so many blocks of each group."""
        return sum(count * group.bytes_per_block for count, group in zip(counts, self.groups, strict=True))

    def longest(self, memory: int) -> int:
        """Tokens of the longest sequence of the model that fits into ``memory`` bytes."""
        low, high = 0, self._context
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.nbytes(self.least(middle)) <= memory else (low, middle - 1)
        return low

    def split(self, memory: int) -> Counts:
        """Blocks for each group out of ``memory`` bytes, which are at least those of :meth:`least`.

        The groups' shares are what a typical sequence takes of each. Windows and states count twice, so that the end of
        an earlier turn of a conversation stays beside the running one. No group gets less than one sequence of
        ``max_model_len`` tokens takes (a typical one, if the config names none): computed by the largest rows if there
        is room for those.
        """
        if len(self.groups) == 1:
            return (memory // self.groups[0].bytes_per_block,)
        typical = min(self._asked or self._context, _TYPICAL_TOKENS)
        length = self._asked or max(1, min(typical, self.longest(memory)))
        shares = [
            share if group.kind == "full" else min(2 * share, -(-typical // self.block_size))
            for share, group in zip(self.least(typical), self.groups, strict=True)
        ]
        choices = (self.least(length, self._chunk), self.least(length), (0,) * len(self.groups))
        least = next(choice for choice in choices if self.nbytes(choice) <= memory)
        counts, open_groups = list(least), list(range(len(self.groups)))
        while open_groups:
            left = memory - self.nbytes(0 if i in open_groups else count for i, count in enumerate(counts))
            wanted = sum(shares[i] * self.groups[i].bytes_per_block for i in open_groups)
            portions = {i: left * shares[i] // wanted for i in open_groups}
            short = [i for i in open_groups if portions[i] < least[i]]
            if not short:
                for i, count in portions.items():
                    counts[i] = count
                break
            open_groups = [i for i in open_groups if i not in short]
        return tuple(counts)

    def plan(self, counts: Counts) -> KVCachePlan:
        """The plan of a cache with so many blocks of each group, at least those of :meth:`least`."""
        size = self.block_size
        capacity = min(
            self._context if count >= need else count * size
            for count, need in zip(counts, self.least(self._context), strict=True)
        )
        groups = [
            msgspec.structs.replace(group, num_blocks=count) for group, count in zip(self.groups, counts, strict=True)
        ]
        return KVCachePlan(KVCacheSpec(block_size=size, groups=groups), self._asked or min(self._context, capacity))


def plan_kv_cache(model: ModelConfig, config: EngineConfig) -> KVCachePlan:
    """Splits the memory budget into blocks, or takes the number of blocks that the config names.

    Raises:
        RunnerError: ``max_model_len`` is beyond the model, or the cache cannot hold one sequence of that length.
    """
    sizes = Sizes(model, config)
    memory = DEFAULT_MEMORY if config.kv_cache_memory is None else config.kv_cache_memory
    needed = sizes.least()
    given = config.num_blocks
    if given is None:
        fits = sizes.nbytes(needed) <= memory
        counts = sizes.split(memory)
    else:
        counts = (given,) * len(needed) if isinstance(given, int) else given
        if len(counts) != len(needed):
            raise RunnerError(f"num_blocks = {given} is not of the model's {len(needed)} groups of layers")
        fits = all(count >= need for count, need in zip(counts, needed, strict=True))
    if not fits:
        asked, size = config.max_model_len, config.block_size
        what = f"one sequence of max_model_len = {asked} tokens" if asked else f"{size} tokens"
        problem = f"num_blocks = {given} is too small a KV cache"
        if given is None:
            problem = f"kv_cache_memory = {memory} bytes is too small, it gives {_text(counts)} blocks"
        raise RunnerError(
            f"{problem}: {what} need {_text(needed)} blocks of {size} tokens, {sizes.nbytes(needed)} bytes; "
            "raise kv_cache_memory or lower max_model_len"
        )
    return sizes.plan(counts)


def _text(counts: Counts) -> str:
    return " + ".join(map(str, counts))
