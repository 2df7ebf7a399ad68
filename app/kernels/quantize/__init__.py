"""Int8 of activations, as an op of its own where the kernel before it leaves them floating.

Other kernels start its code too.
"""

from __future__ import annotations

from torch import Tensor

from app.kernels.check import FLOATING, check_act, check_tensor, check_token_scale, scaled_by_groups
from app.kernels.dispatch import Dim, emit, native, runs_triton
from app.kernels.quantize.cpu import quantize_call
from app.kernels.quantize.reference import quantize_reference
from app.kernels.types import Act

__all__ = ["quantize"]


def quantize(x_TK: Tensor, out: Act) -> None:
    """``out`` is x in int8, scaled by groups (natively) or by tokens (in Triton).

    Args:
        x_TK: [T, K] floating.
        out: [T, K] int8.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    shape = (x_TK.shape[0], x_TK.shape[1])
    check_tensor("quantize", "x", x_TK, shape, *FLOATING)
    check_act("quantize", "out", out, shape)
    if out.scale is None:
        raise ValueError(f"quantize: out is {out.values.dtype} and has no scale")
    if runs_triton(x_TK):
        check_token_scale("quantize", out)
        from app.kernels.quantize.triton import quantize_triton  # only a GPU needs Triton

        quantize_triton(x_TK, out)
    elif scaled_by_groups(out) and native("quantize", x_TK):
        emit([quantize_call(x_TK, out, Dim.TOKENS)], tokens=shape[0])
    else:
        quantize_reference(x_TK, out)
