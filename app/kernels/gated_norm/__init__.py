"""RMSNorm of each head, times the SiLU of a gate, with optional quantisation for the linear layer that follows."""

from __future__ import annotations

from torch import Tensor

from app.kernels.check import FLOATING, check_act, check_columns, check_tensor, check_token_scale, scaled_by_groups
from app.kernels.dispatch import native, runs_triton
from app.kernels.gated_norm.cpu import gated_norm_cpu
from app.kernels.gated_norm.reference import gated_norm_reference
from app.kernels.types import Act

__all__ = ["gated_norm"]

_OP = "gated_norm"


def gated_norm(x_TN: Tensor, weight_E: Tensor, gate_TN: Tensor, eps: float, out: Act) -> None:
    """``out = x / sqrt(mean(x²) + eps) * weight * silu(gate)``, the mean that of each head of E neighbours.

    Computed in fp32; an int8 ``out`` is quantised by groups or, with one scale a token, by tokens (all that Triton
    knows; not native).

    Args:
        x_TN: [T, H * E] floating.
        weight_E: [E] floating, of every head.
        gate_TN: [T, H * E] of x's dtype; may be columns of a wider tensor.
        eps: added to the mean square.
        out: [T, H * E].

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    shape = (x_TN.shape[0], x_TN.shape[1])
    check_tensor(_OP, "x", x_TN, shape, *FLOATING)
    check_tensor(_OP, "weight", weight_E, (weight_E.numel(),), *FLOATING)
    if shape[1] % weight_E.numel():
        raise ValueError(f"{_OP}: x has {shape[1]} columns, expected heads of {weight_E.numel()}")
    check_columns(_OP, "gate", gate_TN, shape, x_TN.dtype)
    check_act(_OP, "out", out, shape)
    if runs_triton(x_TN):
        check_token_scale(_OP, out)
        from app.kernels.gated_norm.triton import gated_norm_triton  # only a GPU needs Triton

        gated_norm_triton(x_TN, weight_E, gate_TN, eps, out)
    elif scaled_by_groups(out) and native(_OP, x_TN, weight_E, out.values):
        gated_norm_cpu(x_TN, weight_E, gate_TN, eps, out)
    else:
        gated_norm_reference(x_TN, weight_E, gate_TN, eps, out)
