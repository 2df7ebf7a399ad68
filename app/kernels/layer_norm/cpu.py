"""Binding of the native ``layer_norm``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim, emit
from app.kernels.native.program import dtype_code
from app.kernels.types import Act


def layer_norm_cpu(
    x_TD: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float, out: Act, residual: Tensor | None
) -> None:
    call = Call(
        "layer_norm",
        Dim.TOKENS,
        x=x_TD,
        weight=weight_D,
        bias=bias_D,
        residual=residual,
        out=out.values,
        out_scale=out.scale,
        dtype=dtype_code(x_TD),
        weight_dtype=dtype_code(weight_D),
        out_dtype=dtype_code(out.values),
        width=x_TD.shape[1],
        eps=eps,
    )
    emit([call], tokens=x_TD.shape[0])
