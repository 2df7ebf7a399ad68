"""The pages of the paged KV cache."""

from __future__ import annotations

import torch

from app.kernels import dispatch
from app.kernels.native.library import allocate
from app.kernels.paged_attention.cpu import can_pack
from app.kernels.types import LayerKVCache
from app.runner.device import DTYPES
from app.runner.errors import RunnerError
from app.types import KVCacheGroup, KVCacheSpec

KV_DTYPES = {**DTYPES, "int8": torch.int8}
SCALE_DTYPE = torch.float16


def allocate_kv_cache(
    spec: KVCacheSpec, device: torch.device, *, heads_per_kv: int, trash: bool = False
) -> list[LayerKVCache]:
    """Pages for each layer, uninitialised: no kernel reads a page entry that no token of the sequence has written.

    On a CPU the operating system hands the memory out only as pages are written.

    Args:
        heads_per_kv: query heads that share a key/value head, of the layer that has most.
        trash: in each group one block more, the last, for rows that pad a step.

    Raises:
        RunnerError: a group is not one of keys and values.
    """
    by_layer = {
        layer: pages
        for group in spec.groups
        for layer, pages in zip(
            group.layers, _pages(group, spec.block_size, device, heads_per_kv, trash=trash), strict=True
        )
    }
    return [by_layer[layer] for layer in sorted(by_layer)]


def _pages(
    group: KVCacheGroup, block_size: int, device: torch.device, heads_per_kv: int, *, trash: bool
) -> list[LayerKVCache]:
    if group.kind not in ("full", "sliding"):
        raise RunnerError(f"a KV cache group of {group.kind!r} has no pages of keys and values")
    scale_shape = (group.num_blocks + trash, 2, group.num_kv_heads, block_size)
    shape, dtype = (*scale_shape, group.head_dim), KV_DTYPES[group.dtype]
    packed = device.type == "cpu" and dispatch.unavailable() is None and can_pack(shape, dtype, heads_per_kv)

    def pages() -> LayerKVCache:
        if packed:
            scale = allocate(scale_shape, SCALE_DTYPE) if dtype == torch.int8 else None
            return LayerKVCache(allocate(shape, dtype), scale, packed=True)
        scale = torch.empty(scale_shape, dtype=SCALE_DTYPE, device=device) if dtype == torch.int8 else None
        return LayerKVCache(torch.empty(shape, dtype=dtype, device=device), scale)

    return [pages() for _ in range(group.num_layers)]
