"""A product for each head, with weights of its own."""

from __future__ import annotations

from torch import Tensor

from app.kernels.check import FLOATING, check_heads, check_tensor
from app.kernels.dispatch import native, runs_triton
from app.kernels.head_linear.cpu import head_linear_cpu
from app.kernels.head_linear.reference import head_linear_reference

__all__ = ["head_linear"]

_OP = "head_linear"


def head_linear(x_THK: Tensor, weight_HKN: Tensor, out_THN: Tensor) -> None:
    """``out[t, h] = x[t, h] @ weight[h]``, summed in fp32.

    Natively a token's result hangs on that token alone, bit for bit; products are fp32. On a GPU products are of x's
    dtype, which a weight of another one is converted to.

    Args:
        x_THK: [T, H, K] floating; may be parts of wider heads, likewise ``out_THN``.
        weight_HKN: [H, K, N] floating.
        out_THN: [T, H, N] floating.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    tokens, heads, k = x_THK.shape
    n = weight_HKN.shape[-1]
    check_heads(_OP, "x", x_THK, (tokens, heads, k), *FLOATING)
    check_tensor(_OP, "weight", weight_HKN, (heads, k, n), *FLOATING)
    check_heads(_OP, "out", out_THN, (tokens, heads, n), *FLOATING)
    if runs_triton(x_THK):
        from app.kernels.head_linear.triton import head_linear_triton  # only a GPU needs Triton

        head_linear_triton(x_THK, weight_HKN, out_THN)
    elif native(_OP, x_THK, weight_HKN, out_THN):
        head_linear_cpu(x_THK, weight_HKN, out_THN)
    else:
        head_linear_reference(x_THK, weight_HKN, out_THN)
