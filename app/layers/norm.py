"""RMS normalisation (Zhang and Sennrich 2019, arXiv:1910.07467)."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.add_norm import add_norm
from app.kernels.types import Act
from app.quant.destination import Destination
from app.quant.placement import Placement


class RMSNorm:
    """Normalises a residual stream, adding to it first what the layer before made."""

    def __init__(self, width: int, eps: float, *, placement: Placement) -> None:
        self.weight = torch.empty(width, dtype=placement.dtype, device=placement.device)
        self.eps = eps

    def __call__(self, x_TD: Tensor, out: Act, *, residual_TD: Tensor | None = None) -> None:
        """``out = norm(x)``, or with a residual: ``residual += x`` in place, then ``out = norm(residual)``."""
        add_norm(x_TD, self.weight, self.eps, out, residual=residual_TD)

    def destinations(self, name: str) -> dict[str, Destination]:
        """Where a checkpoint's ``{name}.weight`` goes."""
        return {f"{name}.weight": self.weight}
