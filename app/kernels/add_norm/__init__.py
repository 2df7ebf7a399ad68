"""Residual addition and RMSNorm in one pass, with optional quantisation for the linear layer that follows."""

from __future__ import annotations

from torch import Tensor

from app.kernels.add_norm.cpu import add_norm_cpu
from app.kernels.add_norm.reference import add_norm_reference
from app.kernels.check import FLOATING, check_act, check_tensor, check_token_scale, scaled_by_groups
from app.kernels.dispatch import native, runs_triton
from app.kernels.types import Act

__all__ = ["add_norm"]


def add_norm(x_TD: Tensor, weight_D: Tensor | None, eps: float, out: Act, *, residual: Tensor | None = None) -> None:
    """RMSNorm of x, or of x added to a residual stream; without a weight x itself, or the sum as it is stored.

    Without ``residual``: ``out = x / sqrt(mean(x²) + eps) * weight``. With it: ``residual += x`` in place (summed
    in fp32, rounded once to the stream's dtype), and ``out`` is the norm of that sum. Computed in fp32; an int8
    ``out`` is quantised by groups or, with one scale a token, by tokens (all that Triton knows; not native).

    Args:
        x_TD: [T, D] floating.
        weight_D: [D] floating; None norms nothing.
        eps: added to the mean square.
        out: [T, D].
        residual: [T, D] of x's dtype.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    shape = (x_TD.shape[0], x_TD.shape[-1] if weight_D is None else weight_D.numel())
    check_tensor("add_norm", "x", x_TD, shape, *FLOATING)
    if weight_D is not None:
        check_tensor("add_norm", "weight", weight_D, shape[1:], *FLOATING)
    check_act("add_norm", "out", out, shape)
    if residual is not None:
        check_tensor("add_norm", "residual", residual, shape, x_TD.dtype)
    if runs_triton(x_TD):
        check_token_scale("add_norm", out)
        from app.kernels.add_norm.triton import add_norm_triton  # only a GPU needs Triton

        add_norm_triton(x_TD, weight_D, eps, out, residual)
    elif scaled_by_groups(out) and native("add_norm", x_TD, weight_D, residual, out.values):
        add_norm_cpu(x_TD, weight_D, eps, out, residual)
    else:
        add_norm_reference(x_TD, weight_D, eps, out, residual)
