"""Binding of the native ``head_norm_add``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim, emit
from app.kernels.native.program import dtype_code


def head_norm_add_cpu(
    x_TN: Tensor, weight_E: Tensor, addend_TN: Tensor, out_TN: Tensor, eps: float, scale: float
) -> None:
    width = weight_E.numel()
    call = Call(
        "head_norm_add",
        Dim.TOKENS,
        x=x_TN,
        weight=weight_E,
        addend=addend_TN,
        out=out_TN,
        dtype=dtype_code(x_TN),
        weight_dtype=dtype_code(weight_E),
        heads=x_TN.shape[1] // width,
        width=width,
        eps=eps,
        scale=scale,
    )
    emit([call], tokens=x_TN.shape[0])
