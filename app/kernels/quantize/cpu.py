"""Binding of the native ``quantize``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim
from app.kernels.native.program import dtype_code
from app.kernels.types import Act


def quantize_call(x: Tensor, out: Act, dim: Dim, indices: Tensor | None = None) -> Call:
    """Per-token int8 of the rows of ``x``, or of those that ``indices`` names."""
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
