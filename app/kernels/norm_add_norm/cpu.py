"""Binding of the native ``norm_add_norm``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim, emit
from app.kernels.native.program import dtype_code
from app.kernels.types import Act


def norm_add_norm_cpu(
    x_TD: Tensor,
    x_weight_D: Tensor,
    residual: Tensor,
    weight_D: Tensor | None,
    eps: float,
    out: Act,
    factor: Tensor | None,
) -> None:
    call = Call(
        "norm_add_norm",
        Dim.TOKENS,
        x=x_TD,
        x_weight=x_weight_D,
        residual=residual,
        weight=weight_D,
        factor=factor,
        out=out.values,
        out_scale=out.scale,
        dtype=dtype_code(x_TD),
        weight_dtype=dtype_code(x_weight_D),
        out_dtype=dtype_code(out.values),
        width=x_TD.shape[1],
        eps=eps,
    )
    emit([call], tokens=x_TD.shape[0])
