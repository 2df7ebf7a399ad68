"""A gate behind attention: its sigmoid times the output, with optional quantisation for the layer that follows."""

from __future__ import annotations

from torch import Tensor

from app.kernels.check import FLOATING, check_act, check_columns, check_tensor, check_token_scale, scaled_by_groups
from app.kernels.dispatch import native, runs_triton
from app.kernels.sigmoid_mul.cpu import sigmoid_mul_cpu
from app.kernels.sigmoid_mul.reference import sigmoid_mul_reference
from app.kernels.types import Act

__all__ = ["sigmoid_mul"]

_OP = "sigmoid_mul"


def sigmoid_mul(x_TN: Tensor, gate_TN: Tensor, out: Act) -> None:
    """``out = x * sigmoid(gate)`` in fp32, rounded once.

    An int8 ``out`` is quantised by groups or, with one scale a token, by tokens (all that Triton knows; not native).

    Args:
        x_TN: [T, N] floating.
        gate_TN: [T, N] of x's dtype; may be columns of a wider tensor.
        out: [T, N]; may be the very tensor ``x``.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    shape = (x_TN.shape[0], x_TN.shape[1])
    check_tensor(_OP, "x", x_TN, shape, *FLOATING)
    check_columns(_OP, "gate", gate_TN, shape, x_TN.dtype)
    check_act(_OP, "out", out, shape)
    if runs_triton(x_TN):
        check_token_scale(_OP, out)
        from app.kernels.sigmoid_mul.triton import sigmoid_mul_triton  # only a GPU needs Triton

        sigmoid_mul_triton(x_TN, gate_TN, out)
    elif scaled_by_groups(out) and native(_OP, x_TN, out.values):
        sigmoid_mul_cpu(x_TN, gate_TN, out)
    else:
        sigmoid_mul_reference(x_TN, gate_TN, out)
