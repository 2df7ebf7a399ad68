"""The pages that a layer keeps between steps: what a block of them holds.

:meth:`app.kernels.backend.Backend.allocate_pages` makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from app.kernels.types import LayerKVCache, LayerState

Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]
"""Makes a tensor."""

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

    def new(self, num_blocks: int, block_size: int, allocate: Allocate, *, packed: bool) -> LayerKVCache:
        """One layer's pages."""
        scales = (num_blocks, 2, self.num_heads, block_size)
        scale = allocate(scales, SCALE_DTYPE) if self.dtype == torch.int8 else None
        return LayerKVCache(allocate((*scales, self.head_dim), self.dtype), scale, packed)


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

    def new(self, num_blocks: int, block_size: int, allocate: Allocate) -> LayerState:
        """One layer's pages."""
        conv = allocate((num_blocks, self.conv_inputs, self.channels), self.dtype)
        matrices = allocate((num_blocks, self.num_heads, self.k_dim, self.v_dim), torch.float32)
        return LayerState(conv, matrices, block_size)


PageShape = KVPages | StatePages
Pages = LayerKVCache | LayerState
