"""Residual addition and LayerNorm in one pass, with optional quantisation for the linear layer that follows."""

from __future__ import annotations

from torch import Tensor

from app.kernels.check import FLOATING, check_act, check_tensor, check_token_scale, scaled_by_groups
from app.kernels.dispatch import native, runs_triton
from app.kernels.layer_norm.cpu import layer_norm_cpu
from app.kernels.layer_norm.reference import layer_norm_reference
from app.kernels.types import Act

__all__ = ["layer_norm"]


def layer_norm(
    x_TD: Tensor,
    weight_D: Tensor,
    bias_D: Tensor | None,
    eps: float,
    out: Act,
    *,
    residual: Tensor | None = None,
) -> None:
    """LayerNorm of x, or of x added to a residual stream.

    Without ``residual``: ``out = (x - mean(x)) / sqrt(mean((x - mean(x))²) + eps) * weight + bias``. With it:
    ``residual += x`` in place (summed in fp32, rounded once to the stream's dtype), and ``out`` is the norm of that
    sum. Computed in fp32, in two passes; an int8 ``out`` is quantised by groups or, with one scale a token, by tokens
    (all that Triton knows; not native).

    Args:
        x_TD: [T, D] floating.
        weight_D: [D] floating.
        bias_D: [D] of the weight's dtype; None for none.
        eps: added to the variance.
        out: [T, D].
        residual: [T, D] of x's dtype.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    shape = (x_TD.shape[0], weight_D.numel())
    check_tensor("layer_norm", "x", x_TD, shape, *FLOATING)
    check_tensor("layer_norm", "weight", weight_D, shape[1:], *FLOATING)
    if bias_D is not None:
        check_tensor("layer_norm", "bias", bias_D, shape[1:], weight_D.dtype)
    check_act("layer_norm", "out", out, shape)
    if residual is not None:
        check_tensor("layer_norm", "residual", residual, shape, x_TD.dtype)
    if runs_triton(x_TD):
        check_token_scale("layer_norm", out)
        from app.kernels.layer_norm.triton import layer_norm_triton  # only a GPU needs Triton

        layer_norm_triton(x_TD, weight_D, bias_D, eps, out, residual)
    elif scaled_by_groups(out) and native("layer_norm", x_TD, weight_D, residual, out.values):
        layer_norm_cpu(x_TD, weight_D, bias_D, eps, out, residual)
    else:
        layer_norm_reference(x_TD, weight_D, bias_D, eps, out, residual)
