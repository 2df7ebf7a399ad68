"""Binding of the native ``silu_gate``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim, emit
from app.kernels.native.program import dtype_code
from app.kernels.types import Act


def silu_gate_cpu(x_TN: Tensor, gate_TN: Tensor, out: Act, weight_N: Tensor | None, groups: int, eps: float) -> None:
    call = Call(
        "silu_gate",
        Dim.TOKENS,
        x=x_TN,
        gate=gate_TN,
        weight=weight_N,
        out=out.values,
        out_scale=out.scale,
        dtype=dtype_code(x_TN),
        weight_dtype=dtype_code(x_TN if weight_N is None else weight_N),
        out_dtype=dtype_code(out.values),
        groups=groups,
        width=x_TN.shape[1] // groups,
        gate_stride=gate_TN.stride(0),
        eps=eps,
    )
    emit([call], tokens=x_TN.shape[0])
