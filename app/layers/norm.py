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
        plus_one: checkpoints hold w, and 1 + w is the factor; the sum is kept in fp32.
    """

    def __init__(self, width: int, eps: float, *, placement: Placement, plus_one: bool = False) -> None:
        dtype = torch.float32 if plus_one else placement.dtype
        self.weight = torch.empty(width, dtype=dtype, device=placement.device)
        self.eps = eps
        self._plus_one = plus_one

    def __call__(self, x_TD: Tensor, out: Act, *, residual_TD: Tensor | None = None) -> None:
        """``out = norm(x)``, or with a residual: ``residual += x`` in place, then ``out = norm(residual)``."""
        add_norm(x_TD, self.weight, self.eps, out, residual=residual_TD)

    def behind(
        self, post_norm: RMSNorm, x_TD: Tensor, out: Act, residual_TD: Tensor, *, factor: Tensor | None = None
    ) -> None:
        """``residual += post_norm(x)`` in place, times ``factor`` [1], then ``out = norm(residual)``; both norms have
        one epsilon."""
        norm_add_norm(x_TD, post_norm.weight, residual_TD, self.weight, self.eps, out, factor=factor)

    def destinations(self, name: str) -> dict[str, Destination]:
        """Where a checkpoint's ``{name}.weight`` goes."""
        return {f"{name}.weight": PlusOne(self.weight) if self._plus_one else self.weight}


class NoNorm:
    """Stands ahead of a sublayer that reads the stream as it is."""

    def __call__(self, x_TD: Tensor, out: Act, *, residual_TD: Tensor | None = None) -> None:
        """``out = x``, or with a residual: ``residual += x`` in place, then ``out = residual``."""
        add_norm(x_TD, None, 0.0, out, residual=residual_TD)

    def behind(
        self, post_norm: RMSNorm, x_TD: Tensor, out: Act, residual_TD: Tensor, *, factor: Tensor | None = None
    ) -> None:
        """``residual += post_norm(x)`` in place, times ``factor`` [1], then ``out = residual``."""
        norm_add_norm(x_TD, post_norm.weight, residual_TD, None, post_norm.eps, out, factor=factor)

    def destinations(self, name: str) -> dict[str, Destination]:  # noqa: ARG002
        """None: there are no weights."""
        return {}


class LayerNorm:
    """Layer normalisation with a weight (Ba et al. 2016, arXiv:1607.06450).

    Args:
        bias: checkpoints hold a bias too.
    """

    def __init__(self, width: int, eps: float, *, placement: Placement, bias: bool = True) -> None:
        self.weight = torch.empty(width, dtype=placement.dtype, device=placement.device)
        self.bias: Tensor | None = None
        if bias:
            self.bias = torch.empty(width, dtype=placement.dtype, device=placement.device)
        self.eps = eps

    def __call__(self, x_TD: Tensor, out: Act, *, residual_TD: Tensor | None = None) -> None:
        """``out = norm(x)``, or with a residual: ``residual += x`` in place, then ``out = norm(residual)``."""
        layer_norm(x_TD, self.weight, self.bias, self.eps, out, residual=residual_TD)

    def destinations(self, name: str) -> dict[str, Destination]:
        """Where a checkpoint's ``{name}.weight`` and, with a bias, ``.bias`` go."""
        named: dict[str, Destination] = {f"{name}.weight": self.weight}
        if self.bias is not None:
            named[f"{name}.bias"] = self.bias
        return named
