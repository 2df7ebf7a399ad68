"""Specification of ``add_norm`` in plain torch."""

from __future__ import annotations

from torch import Tensor

from app.kernels.int8 import store_act
from app.kernels.types import Act


def add_norm_reference(x_TD: Tensor, weight_D: Tensor | None, eps: float, out: Act, residual: Tensor | None) -> None:
    if residual is not None:
        residual.add_(x_TD)
        x_TD = residual
    x_TD = x_TD.float()
    if weight_D is None:
        store_act(x_TD, out)
        return
    inverse_rms_T1 = x_TD.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
    store_act(x_TD * inverse_rms_T1 * weight_D.float(), out)
