"""The pages that a layer keeps between steps: what a block of them holds.

:meth:`app.kernels.backend.Backend.allocate_pages` makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from app.kernels.types import LayerKVCache, LayerLatents, LayerState

Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]
"""Makes a tensor of a shape and dtype."""

SCALE_DTYPE = torch.float16
"""Dtype of the scales of int8 keys and values."""


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
class LatentPages:
    """Latents of attention, one for every token of a block, whose heads they serve as keys and values alike; see
    :class:`~app.kernels.types.LayerLatents`."""

    width: int
    """Elements of a token: those that are compressed, and those of the rotated key."""
    dtype: torch.dtype

    def bytes_per_block(self, block_size: int) -> int:
        """Bytes of one layer's block."""
        return block_size * self.width * self.dtype.itemsize

    def new(self, num_blocks: int, block_size: int, allocate: Allocate) -> LayerLatents:
        """One layer's pages."""
        return LayerLatents(allocate((num_blocks, block_size, self.width), self.dtype))


@dataclass(frozen=True, slots=True)
class StatePages:
    """Recurrent state, one for a block: of a convolution, and of the rule or scan that follows it, if one does.

    See :class:`~app.kernels.types.LayerState`.
    """

    conv_inputs: int
    """Inputs of the convolution that are kept: one less than its taps."""
    channels: int
    """Channels of the convolution, of this rank."""
    dtype: torch.dtype
    """Dtype of the convolution's inputs; the matrices are fp32."""
    num_heads: int = 0
    """Matrices: one for each value head of this rank, or head of Mamba-2; 0 where the convolution's inputs are all of
    the state."""
    k_dim: int = 0
    """Rows of a matrix: width of a key head, or of B and C of Mamba-2."""
    v_dim: int = 0
    """Columns of a matrix: width of a value head, or of a head of Mamba-2."""

    def bytes_per_block(self, block_size: int) -> int:  # noqa: ARG002
        """Bytes of one layer's block, which holds one state, however many tokens it stands for."""
        conv = self.conv_inputs * self.channels * self.dtype.itemsize
        return conv + self.num_heads * self.k_dim * self.v_dim * torch.float32.itemsize

    def new(self, num_blocks: int, block_size: int, allocate: Allocate) -> LayerState:
        """One layer's pages."""
        conv = allocate((num_blocks, self.conv_inputs, self.channels), self.dtype)
        matrices = allocate((num_blocks, self.num_heads, self.k_dim, self.v_dim), torch.float32)
        return LayerState(conv, matrices, block_size)


PageShape = KVPages | LatentPages | StatePages
Pages = LayerKVCache | LayerLatents | LayerState
