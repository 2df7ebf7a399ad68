"""Binding of the native ``quantize``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.check import check_group_scale
from app.kernels.dispatch import Call, Dim
from app.kernels.native.program import dtype_code
from app.kernels.types import Act


def quantize_call(x: Tensor, out: Act, dim: Dim, indices: Tensor | None = None) -> Call:
    """Int8 by groups of the rows of ``x``, or of those that ``indices`` names."""
    check_group_scale("quantize", out)
    return Call(
        "quantize",
        dim,
        x=x,
        indices=indices,
        out=out.values,
        scale=out.scale,
        dtype=dtype_code(x),
        width=x.shape[1],
    )
