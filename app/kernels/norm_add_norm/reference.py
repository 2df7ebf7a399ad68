"""Specification of ``norm_add_norm`` in plain torch."""

from __future__ import annotations

from torch import Tensor

from app.kernels.int8 import store_act
from app.kernels.types import Act


def norm_add_norm_reference(
    x_TD: Tensor,
    x_weight_D: Tensor,
    residual: Tensor,
    weight_D: Tensor | None,
    eps: float,
    out: Act,
    factor: Tensor | None,
) -> None:
    total = _rms_norm(x_TD.float(), x_weight_D, eps).add_(residual)
    residual.copy_(total if factor is None else total.mul_(factor))
    total = residual.float()
    store_act(total if weight_D is None else _rms_norm(total, weight_D, eps), out)


def _rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    inverse_rms_T1 = x_TD.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
    return x_TD * inverse_rms_T1 * weight_D.float()
