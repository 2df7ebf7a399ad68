"""Binding of the native ``head_linear``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim, emit
from app.kernels.native.program import dtype_code


def head_linear_cpu(x_THK: Tensor, weight_HKN: Tensor, out_THN: Tensor) -> None:
    heads, k, n = weight_HKN.shape
    call = Call(
        "head_linear",
        Dim.TOKENS,
        x=x_THK,
        weight=weight_HKN,
        out=out_THN,
        x_dtype=dtype_code(x_THK),
        weight_dtype=dtype_code(weight_HKN),
        out_dtype=dtype_code(out_THN),
        heads=heads,
        k=k,
        n=n,
        x_token_stride=x_THK.stride(0),
        x_head_stride=x_THK.stride(1),
        out_token_stride=out_THN.stride(0),
        out_head_stride=out_THN.stride(1),
    )
    emit([call], tokens=x_THK.shape[0])
