"""RMS normalisation (Zhang and Sennrich 2019, arXiv:1910.07467)."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.add_norm import add_norm
from app.kernels.types import Act


class RMSNorm:
    """Normalises a residual stream, adding to it first what the layer before made."""

    def __init__(self, width: int, eps: float, *, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = torch.empty(width, dtype=dtype, device=device)
        self.eps = eps

    def __call__(self, x_TD: Tensor, out: Act, *, residual_TD: Tensor | None = None) -> None:
        """``out = norm(x)``, or with a residual: ``residual += x`` in place, then ``out = norm(residual)``."""
        add_norm(x_TD, self.weight, self.eps, out, residual=residual_TD)

    def destinations(self, name: str) -> dict[str, Tensor]:
        """Where a checkpoint's ``{name}.weight`` goes."""
        return {f"{name}.weight": self.weight}
