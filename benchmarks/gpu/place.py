"""Where a case of the correctness stage runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from app.kernels.types import LayerKVCache

BLOCK_SIZE = 16
"""Tokens of a page."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a case runs, and its floating dtype. Tensors hold the same values in every place."""

    device: torch.device
    dtype: torch.dtype
    random: torch.Generator

    def randn(self, *shape: int) -> Tensor:
        """Normal values that bf16 holds."""
        return torch.randn(shape, generator=self.random).bfloat16().to(self.device, self.dtype)

    def ints(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Uniform integers."""
        return torch.randint(low, high, shape, generator=self.random, dtype=dtype).to(self.device)

    def scales(self, *shape: int) -> Tensor:
        """Scales in fp32, about 0.01."""
        return (torch.rand(shape, generator=self.random) * 0.01 + 0.005).to(self.device)

    def put(self, values: list[int], dtype: torch.dtype) -> Tensor:
        """A vector."""
        return torch.tensor(values, dtype=dtype, device=self.device)

    def empty(self, *shape: int) -> Tensor:
        """Empty tensor of the floating dtype; NaN where nothing was written."""
        return torch.full(shape, float("nan"), dtype=self.dtype, device=self.device)

    def cache(self, blocks: int, heads: int, width: int, *, int8: bool) -> LayerKVCache:
        """Pages full of values."""
        if not int8:
            return LayerKVCache(self.randn(blocks, 2, heads, BLOCK_SIZE, width))
        values = self.ints(-127, 128, blocks, 2, heads, BLOCK_SIZE, width, dtype=torch.int8)
        return LayerKVCache(values, self.scales(blocks, 2, heads, BLOCK_SIZE).half())
