"""The pages that a layer keeps between steps: what a block of them holds, and their memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from app.kernels.dispatch import unavailable
from app.kernels.native.library import allocate
from app.kernels.paged_attention.cpu import can_pack
from app.kernels.types import LayerKVCache, LayerState

SCALE_DTYPE = torch.float16
"""Of int8 keys and values."""


@dataclass(frozen=True, slots=True)
class KVPages:
    """Keys and values of attention, for every token of a block."""

    num_heads: int
    """Key/value heads of this rank."""
    head_dim: int
    dtype: torch.dtype

    def bytes_per_block(self, block_size: int) -> int:
        """Bytes of one layer's block, scales included."""
        scale = SCALE_DTYPE.itemsize if self.dtype == torch.int8 else 0
        return 2 * self.num_heads * block_size * (self.head_dim * self.dtype.itemsize + scale)


@dataclass(frozen=True, slots=True)
class StatePages:
    """Recurrent state of the gated delta rule, one for a block; see :class:`~app.kernels.types.LayerState`."""

    conv_inputs: int
    """Inputs of the convolution that are kept: its taps but one."""
    channels: int
    """Of the convolution, of this rank, like :attr:`num_heads`."""
    num_heads: int
    """Value heads."""
    k_dim: int
    v_dim: int
    dtype: torch.dtype
    """Of the convolution's inputs; the matrices are fp32."""

    def bytes_per_block(self, block_size: int) -> int:  # noqa: ARG002
        """Bytes of one layer's block, which holds one state, however many tokens it stands for."""
        conv = self.conv_inputs * self.channels * self.dtype.itemsize
        return conv + self.num_heads * self.k_dim * self.v_dim * torch.float32.itemsize


PageShape = KVPages | StatePages
Pages = LayerKVCache | LayerState


def new_pages(
    shape: PageShape, num_blocks: int, block_size: int, device: torch.device, *, heads_per_kv: int = 1
) -> Pages:
    """One layer's pages, uninitialised: no kernel reads what no token of the sequence has written.

    On a CPU the operating system hands the memory out only as pages are written.

    Args:
        heads_per_kv: query heads that share a key/value head.
    """
    native = device.type == "cpu" and unavailable() is None

    def new(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return allocate(shape, dtype) if native else torch.empty(shape, dtype=dtype, device=device)

    if isinstance(shape, StatePages):
        conv = new((num_blocks, shape.conv_inputs, shape.channels), shape.dtype)
        matrices = (num_blocks, shape.num_heads, shape.k_dim, shape.v_dim)
        return LayerState(conv, new(matrices, torch.float32), block_size)
    scales = (num_blocks, 2, shape.num_heads, block_size)
    values = (*scales, shape.head_dim)
    scale = new(scales, SCALE_DTYPE) if shape.dtype == torch.int8 else None
    return LayerKVCache(new(values, shape.dtype), scale, native and can_pack(values, shape.dtype, heads_per_kv))
