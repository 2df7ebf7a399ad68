"""Binding of the native ``sigmoid_mul``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim, emit
from app.kernels.native.program import dtype_code
from app.kernels.types import Act


def sigmoid_mul_cpu(x_TN: Tensor, gate_TN: Tensor, out: Act) -> None:
    call = Call(
        "sigmoid_mul",
        Dim.TOKENS,
        x=x_TN,
        gate=gate_TN,
        out=out.values,
        out_scale=out.scale,
        dtype=dtype_code(x_TN),
        out_dtype=dtype_code(out.values),
        width=x_TN.shape[1],
        gate_stride=gate_TN.stride(0),
    )
    emit([call], tokens=x_TN.shape[0])
