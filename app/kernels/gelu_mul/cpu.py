"""Binding of the native ``gelu_mul``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim, emit
from app.kernels.native.program import dtype_code
from app.kernels.types import Act


def gelu_mul_cpu(gate_TN: Tensor, x_TN: Tensor, out: Act) -> None:
    call = Call(
        "gelu_mul",
        Dim.TOKENS,
        gate=gate_TN,
        x=x_TN,
        out=out.values,
        out_scale=out.scale,
        dtype=dtype_code(gate_TN),
        out_dtype=dtype_code(out.values),
        width=gate_TN.shape[1],
        x_stride=x_TN.stride(0),
    )
    emit([call], tokens=gate_TN.shape[0])
