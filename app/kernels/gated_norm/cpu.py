"""Binding of the native ``gated_norm``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim, emit
from app.kernels.native.program import dtype_code
from app.kernels.types import Act


def gated_norm_cpu(x_TN: Tensor, weight_E: Tensor, gate_TN: Tensor, eps: float, out: Act) -> None:
    width = weight_E.numel()
    call = Call(
        "gated_norm",
        Dim.TOKENS,
        x=x_TN,
        weight=weight_E,
        gate=gate_TN,
        out=out.values,
        out_scale=out.scale,
        dtype=dtype_code(x_TN),
        weight_dtype=dtype_code(weight_E),
        out_dtype=dtype_code(out.values),
        heads=x_TN.shape[1] // width,
        width=width,
        gate_stride=gate_TN.stride(0),
        eps=eps,
    )
    emit([call], tokens=x_TN.shape[0])
