"""A gate behind a scan: its SiLU times the output, normed or not, with optional quantisation for what follows."""

from __future__ import annotations

from torch import Tensor

from app.kernels.check import FLOATING, check_act, check_columns, check_tensor, check_token_scale, scaled_by_groups
from app.kernels.dispatch import native, runs_triton
from app.kernels.silu_gate.cpu import silu_gate_cpu
from app.kernels.silu_gate.reference import silu_gate_reference
from app.kernels.types import Act

__all__ = ["silu_gate"]

_OP = "silu_gate"


def silu_gate(
    x_TN: Tensor, gate_TN: Tensor, out: Act, *, weight_N: Tensor | None = None, groups: int = 1, eps: float = 0.0
) -> None:
    """``out = x * silu(gate)``, and with a weight ``out = y / sqrt(mean(y²) + eps) * weight`` of that product y.

    The mean is that of each of ``groups`` equal parts of a token's columns. Computed in fp32, rounded once; an int8
    ``out`` is quantised by groups or, with one scale a token, by tokens (all that Triton knows; not native).

    Unlike ``gated_norm`` it gates ahead of the norm, whose weight is of all columns.

    Args:
        x_TN: [T, N] floating.
        gate_TN: [T, N] of x's dtype; may be columns of a wider tensor.
        out: [T, N].
        weight_N: [N] floating; None norms nothing.
        groups: divides N.
        eps: added to the mean square.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    shape = (x_TN.shape[0], x_TN.shape[1])
    check_tensor(_OP, "x", x_TN, shape, *FLOATING)
    check_columns(_OP, "gate", gate_TN, shape, x_TN.dtype)
    if weight_N is not None:
        check_tensor(_OP, "weight", weight_N, shape[1:], *FLOATING)
    if groups < 1 or shape[1] % groups:
        raise ValueError(f"{_OP}: {groups} groups do not share {shape[1]} columns out")
    check_act(_OP, "out", out, shape)
    if runs_triton(x_TN):
        check_token_scale(_OP, out)
        from app.kernels.silu_gate.triton import silu_gate_triton  # only a GPU needs Triton

        silu_gate_triton(x_TN, gate_TN, out, weight_N, groups, eps)
    elif scaled_by_groups(out) and native(_OP, x_TN, weight_N, out.values):
        silu_gate_cpu(x_TN, gate_TN, out, weight_N, groups, eps)
    else:
        silu_gate_reference(x_TN, gate_TN, out, weight_N, groups, eps)
