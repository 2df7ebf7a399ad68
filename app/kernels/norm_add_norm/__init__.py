"""RMSNorm of a layer's output, its addition to the residual stream, and the RMSNorm of the stream, in one pass.

It lies between layers that are normed on both sides (sandwich norms, as in Gemma 2 and 3), or behind alone (OLMo 2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.check import FLOATING, check_act, check_tensor, check_token_scale, scaled_by_groups
from app.kernels.dispatch import native, runs_triton
from app.kernels.norm_add_norm.cpu import norm_add_norm_cpu
from app.kernels.norm_add_norm.reference import norm_add_norm_reference
from app.kernels.types import Act

__all__ = ["norm_add_norm"]


def norm_add_norm(
    x_TD: Tensor,
    x_weight_D: Tensor,
    residual: Tensor,
    weight_D: Tensor | None,
    eps: float,
    out: Act,
    *,
    factor: Tensor | None = None,
) -> None:
    """``residual = (residual + rmsnorm(x) * x_weight) * factor`` in place, then ``out = rmsnorm(residual) * weight``.

    ``rmsnorm(x)`` is ``x / sqrt(mean(x²) + eps)``. Computed in fp32; the sum is rounded once to the stream's dtype and
    normed as stored. An int8 ``out`` is quantised by groups or, with one scale a token, by tokens (all that Triton
    knows; not native).

    Args:
        x_TD: [T, D] floating.
        x_weight_D: [D] floating, of the norm of x.
        residual: [T, D] of x's dtype.
        weight_D: [D] of x_weight's dtype, of the norm of the sum; None: ``out`` is the sum as it is stored.
        eps: added to both mean squares.
        out: [T, D].
        factor: [1] fp32; None: 1.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    shape = (x_TD.shape[0], (x_weight_D if weight_D is None else weight_D).numel())
    check_tensor("norm_add_norm", "x", x_TD, shape, *FLOATING)
    check_tensor("norm_add_norm", "x_weight", x_weight_D, shape[1:], *FLOATING)
    if weight_D is not None:
        check_tensor("norm_add_norm", "weight", weight_D, shape[1:], x_weight_D.dtype)
    check_tensor("norm_add_norm", "residual", residual, shape, x_TD.dtype)
    check_act("norm_add_norm", "out", out, shape)
    if factor is not None:
        check_tensor("norm_add_norm", "factor", factor, (1,), torch.float32)
    if runs_triton(x_TD):
        check_token_scale("norm_add_norm", out)
        from app.kernels.norm_add_norm.triton import norm_add_norm_triton  # only a GPU needs Triton

        norm_add_norm_triton(x_TD, x_weight_D, residual, weight_D, eps, out, factor)
    elif scaled_by_groups(out) and native("norm_add_norm", x_TD, x_weight_D, out.values):
        norm_add_norm_cpu(x_TD, x_weight_D, residual, weight_D, eps, out, factor)
    else:
        norm_add_norm_reference(x_TD, x_weight_D, residual, weight_D, eps, out, factor)
