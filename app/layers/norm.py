"""Normalisation of a residual stream."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from app.kernels.add_norm import add_norm
from app.kernels.layer_norm import layer_norm
from app.kernels.norm_add_norm import norm_add_norm
from app.kernels.types import Act
from app.quant.destination import Destination, PlusOne
from app.quant.placement import Placement


class Norm(Protocol):
    """Normalises a residual stream, adding to it first what the sublayer before made."""

    def __call__(self, x_TD: Tensor, out: Act, *, residual_TD: Tensor | None = None) -> None:
        """``out = norm(x)``, or with a residual: ``residual += x`` in place, then ``out = norm(residual)``."""

    def destinations(self, name: str) -> dict[str, Destination]:
        """Where a checkpoint's tensors below ``{name}.`` go."""


class RMSNorm:
    """RMS normalisation (Zhang and Sennrich 2019, arXiv:1910.07467).

    Args:
        plus_one: checkpoints hold w where 1 + w is multiplied with; the sum is kept in fp32.
    """

    def __init__(self, width: int, eps: float, *, placement: Placement, plus_one: bool = False) -> None:
        dtype = torch.float32 if plus_one else placement.dtype
        self.weight = torch.empty(width, dtype=dtype, device=placement.device)
        self.eps = eps
        self._plus_one = plus_one

    def __call__(self, x_TD: Tensor, out: Act, *, residual_TD: Tensor | None = None) -> None:
        """``out = norm(x)``, or with a residual: ``residual += x`` in place, then ``out = norm(residual)``."""
        add_norm(x_TD, self.weight, self.eps, out, residual=residual_TD)

    def behind(self, post_norm: RMSNorm, x_TD: Tensor, out: Act, residual_TD: Tensor) -> None:
        """``residual += post_norm(x)`` in place, then ``out = norm(residual)``; both norms have one epsilon."""
        norm_add_norm(x_TD, post_norm.weight, residual_TD, self.weight, self.eps, out)

    def destinations(self, name: str) -> dict[str, Destination]:
        """Where a checkpoint's ``{name}.weight`` goes."""
        return {f"{name}.weight": PlusOne(self.weight) if self._plus_one else self.weight}


class LayerNorm:
    """Layer normalisation with weight and bias (Ba et al. 2016, arXiv:1607.06450)."""

    def __init__(self, width: int, eps: float, *, placement: Placement) -> None:
        self.weight = torch.empty(width, dtype=placement.dtype, device=placement.device)
        self.bias = torch.empty(width, dtype=placement.dtype, device=placement.device)
        self.eps = eps

    def __call__(self, x_TD: Tensor, out: Act, *, residual_TD: Tensor | None = None) -> None:
        """``out = norm(x)``, or with a residual: ``residual += x`` in place, then ``out = norm(residual)``."""
        layer_norm(x_TD, self.weight, self.bias, self.eps, out, residual=residual_TD)

    def destinations(self, name: str) -> dict[str, Destination]:
        """Where a checkpoint's ``{name}.weight`` and ``.bias`` go."""
        return {f"{name}.weight": self.weight, f"{name}.bias": self.bias}
