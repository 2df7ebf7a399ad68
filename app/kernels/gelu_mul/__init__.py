"""A gate ahead of a product: its GELU times the other factor, with optional quantisation for the layer that follows."""

from __future__ import annotations

from torch import Tensor

from app.kernels.check import FLOATING, check_act, check_columns, check_tensor, check_token_scale, scaled_by_groups
from app.kernels.dispatch import native, runs_triton
from app.kernels.gelu_mul.cpu import gelu_mul_cpu
from app.kernels.gelu_mul.reference import gelu_mul_reference
from app.kernels.types import Act

__all__ = ["gelu_mul"]

_OP = "gelu_mul"


def gelu_mul(gate_TN: Tensor, x_TN: Tensor, out: Act) -> None:
    """``out = gelu(gate) * x`` in fp32, rounded once; the GELU is that by tanh
    (:attr:`app.kernels.activation.Activation.GELU_TANH`).

    An int8 ``out`` is quantised by groups or, with one scale a token, by tokens (all that Triton knows; not native).

    Args:
        gate_TN: [T, N] floating.
        x_TN: [T, N] of the gate's dtype; may be columns of a wider tensor.
        out: [T, N]; may be the very tensor ``gate``.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    shape = (gate_TN.shape[0], gate_TN.shape[1])
    check_tensor(_OP, "gate", gate_TN, shape, *FLOATING)
    check_columns(_OP, "x", x_TN, shape, gate_TN.dtype)
    check_act(_OP, "out", out, shape)
    if runs_triton(gate_TN):
        check_token_scale(_OP, out)
        from app.kernels.gelu_mul.triton import gelu_mul_triton  # only a GPU needs Triton

        gelu_mul_triton(gate_TN, x_TN, out)
    elif scaled_by_groups(out) and native(_OP, gate_TN, out.values):
        gelu_mul_cpu(gate_TN, x_TN, out)
    else:
        gelu_mul_reference(gate_TN, x_TN, out)
