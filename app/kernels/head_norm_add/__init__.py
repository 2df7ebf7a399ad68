"""RMSNorm of each head, an addend and a factor, in one pass.

Gemma 4 makes each layer's own input of a token so: of what a product makes of the embedded token, normed layer by
layer, and of the token's row in a table.
"""

from __future__ import annotations

from torch import Tensor

from app.kernels.check import FLOATING, check_tensor
from app.kernels.dispatch import native, runs_triton
from app.kernels.head_norm_add.cpu import head_norm_add_cpu
from app.kernels.head_norm_add.reference import head_norm_add_reference

__all__ = ["head_norm_add"]

_OP = "head_norm_add"


def head_norm_add(
    x_TN: Tensor, weight_E: Tensor, addend_TN: Tensor, out_TN: Tensor, *, eps: float, scale: float
) -> None:
    """``out = (x / sqrt(mean(x²) + eps) * weight + addend) * scale``, the mean that of each head of E neighbours.

    Computed in fp32 and rounded once.

    Args:
        x_TN: [T, H * E] floating.
        weight_E: [E] floating, of every head.
        addend_TN: [T, H * E] of x's dtype.
        out_TN: likewise; may be the very tensor ``x`` or ``addend``.
        eps: added to the mean square.
        scale: factor on the sum.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    shape = (x_TN.shape[0], x_TN.shape[1])
    check_tensor(_OP, "x", x_TN, shape, *FLOATING)
    check_tensor(_OP, "weight", weight_E, (weight_E.numel(),), *FLOATING)
    if shape[1] % weight_E.numel():
        raise ValueError(f"{_OP}: x has {shape[1]} columns, expected heads of {weight_E.numel()}")
    check_tensor(_OP, "addend", addend_TN, shape, x_TN.dtype)
    check_tensor(_OP, "out", out_TN, shape, x_TN.dtype)
    if runs_triton(x_TN):
        from app.kernels.head_norm_add.triton import head_norm_add_triton  # only a GPU needs Triton

        head_norm_add_triton(x_TN, weight_E, addend_TN, out_TN, eps, scale)
    elif native(_OP, x_TN, weight_E):
        head_norm_add_cpu(x_TN, weight_E, addend_TN, out_TN, eps, scale)
    else:
        head_norm_add_reference(x_TN, weight_E, addend_TN, out_TN, eps, scale)
