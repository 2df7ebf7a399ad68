"""How much the paged KV cache holds, and its pages."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from app.kernels import dispatch
from app.kernels.native.library import allocate
from app.kernels.paged_attention.cpu import can_pack
from app.kernels.types import LayerKVCache
from app.models.config import AttentionConfig, ModelConfig
from app.runner.device import DTYPES
from app.runner.errors import RunnerError
from app.types import EngineConfig, KVCacheGroup, KVCacheSpec

KV_DTYPES = {**DTYPES, "int8": torch.int8}
_SCALE = torch.float16
DEFAULT_MEMORY = 1 << 30
"""Bytes, where nothing says otherwise: on a CPU, whose memory others use too."""


@dataclass(frozen=True, slots=True)
class KVCachePlan:
    """Size of the cache and of the sequences it allows."""

    spec: KVCacheSpec
    num_blocks: int
    max_model_len: int
    """Tokens of the longest sequence: of the model's context, of what was asked, and of the whole cache."""

    @property
    def nbytes(self) -> int:
        """Bytes of all pages of all layers."""
        return self.num_blocks * sum(group.bytes_per_block for group in self.spec.groups)


def plan_kv_cache(model: ModelConfig, config: EngineConfig) -> KVCachePlan:
    """Splits the memory budget into blocks, or takes the number of blocks that the config names.

    Raises:
        RunnerError: ``max_model_len`` is beyond the model, or the cache cannot hold one sequence of that length.
    """
    asked = config.max_model_len
    if asked is not None and not 0 < asked <= model.context_length:
        raise RunnerError(f"max_model_len = {asked} is outside the model's context of {model.context_length} tokens")
    group = kv_cache_group(model, config)
    num_blocks = config.num_blocks
    if num_blocks is None:
        num_blocks = _memory(config) // group.bytes_per_block
    capacity = num_blocks * config.block_size
    needed = -(-(asked or 1) // config.block_size)
    if num_blocks < needed:
        what = f"one sequence of max_model_len = {asked} tokens" if asked else f"{config.block_size} tokens"
        raise RunnerError(
            _given(config, num_blocks)
            + f": {what} need {needed} blocks of {config.block_size} tokens, "
            + f"{needed * group.bytes_per_block} bytes; raise kv_cache_memory or lower max_model_len"
        )
    spec = KVCacheSpec(block_size=config.block_size, groups=[group])
    return KVCachePlan(spec, num_blocks, asked or min(model.context_length, capacity))


def _given(config: EngineConfig, num_blocks: int) -> str:
    if config.num_blocks is not None:
        return f"num_blocks = {config.num_blocks} is too small a KV cache"
    return f"kv_cache_memory = {_memory(config)} bytes is too small, it gives {num_blocks} blocks"


def _memory(config: EngineConfig) -> int:
    return DEFAULT_MEMORY if config.kv_cache_memory is None else config.kv_cache_memory


def kv_cache_dtype(config: EngineConfig) -> str:
    """Name of the pages' dtype; ``auto`` is the model's.

    Raises:
        RunnerError: not a dtype that pages can have.
    """
    name = config.dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype
    if name not in KV_DTYPES:
        raise RunnerError(f"kv_cache_dtype = {name!r} is not supported; use auto or one of {', '.join(KV_DTYPES)}")
    return name


def attention_of(model: ModelConfig) -> AttentionConfig:
    """What the pages of every layer are made for: layers may differ in their windows and angles alone.

    Raises:
        RunnerError: they differ in more.
    """
    shapes = {(attention.num_heads, attention.num_kv_heads, attention.head_dim) for attention in model.attentions}
    if len(shapes) != 1 or len(model.attentions) != model.num_layers:
        raise RunnerError("layers that keep different things for a sequence are not supported")
    return model.attentions[0]


def kv_cache_group(model: ModelConfig, config: EngineConfig) -> KVCacheGroup:
    """What a rank holds, all layers in one group: sliding-window layers keep their whole past too.

    Raises:
        RunnerError: not a dtype that pages can have, or layers that differ.
    """
    name, attention = kv_cache_dtype(config), attention_of(model)
    num_heads = attention.num_kv_heads // config.tensor_parallel_size
    vectors = model.num_layers * 2 * num_heads * config.block_size
    scale_bytes = _SCALE.itemsize if name == "int8" else 0
    return KVCacheGroup(
        kind="full",
        num_layers=model.num_layers,
        num_kv_heads=num_heads,
        head_dim=attention.head_dim,
        dtype=name,
        bytes_per_block=vectors * (attention.head_dim * KV_DTYPES[name].itemsize + scale_bytes),
    )


def allocate_kv_cache(
    plan: KVCachePlan, device: torch.device, *, heads_per_kv: int, trash: bool = False
) -> list[LayerKVCache]:
    """Pages for each layer, uninitialised: no kernel reads a page entry that no token of the sequence has written.

    On a CPU the operating system hands the memory out only as pages are written.

    Args:
        heads_per_kv: query heads that share a key/value head.
        trash: one block more, the last, for rows that pad a step.
    """
    (group,) = plan.spec.groups
    scale_shape = (plan.num_blocks + trash, 2, group.num_kv_heads, plan.spec.block_size)
    shape, dtype = (*scale_shape, group.head_dim), KV_DTYPES[group.dtype]
    packed = device.type == "cpu" and dispatch.unavailable() is None and can_pack(shape, dtype, heads_per_kv)

    def pages() -> LayerKVCache:
        if packed:
            scale = allocate(scale_shape, _SCALE) if dtype == torch.int8 else None
            return LayerKVCache(allocate(shape, dtype), scale, packed=True)
        scale = torch.empty(scale_shape, dtype=_SCALE, device=device) if dtype == torch.int8 else None
        return LayerKVCache(torch.empty(shape, dtype=dtype, device=device), scale)

    return [pages() for _ in range(group.num_layers)]
