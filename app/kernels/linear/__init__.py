"""Linear layer with its epilogue: bias, residual addition, SiLU·mul, quantisation."""

from __future__ import annotations

import enum

import torch
from torch import Tensor

from app.kernels.check import FLOATING, check_act, check_tensor
from app.kernels.linear.reference import linear_reference
from app.kernels.types import Act, LinearWeight

__all__ = ["Activation", "linear"]


class Activation(enum.Enum):
    """What a linear layer does to its result."""

    NONE = "none"
    SILU_MUL = "silu_mul"
    """``silu(gate) * up``, where the weight stacks gate above up."""


def linear(
    x: Act,
    weight: LinearWeight,
    out: Act,
    *,
    residual: Tensor | None = None,
    activation: Activation = Activation.NONE,
) -> None:
    """``out = x @ weight.T + bias``, then ``+ residual`` or ``silu(gate) * up``.

    Accumulates in fp32 (int8: exactly, in int32). For int8 inputs the whole epilogue is fp32, rounded once to
    ``out``; for bf16 inputs without an epilogue likewise. An int8 ``out`` is quantised per token.

    Args:
        x: [T, K], int8 exactly when the weight is int8.
        weight: [N, K].
        out: [T, N]; [T, N / 2] with SILU_MUL.
        residual: [T, N] floating, not with SILU_MUL; may be the very tensor ``out.values``.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    tokens, (features, width) = x.values.shape[0], weight.values.shape
    check_act("linear", "x", x, (tokens, width))
    if (x.scale is None) != (weight.scale is None):
        raise ValueError(f"linear: x is {x.values.dtype} but weight is {weight.values.dtype}")
    check_tensor("linear", "weight", weight.values, (features, width), x.values.dtype)
    if weight.scale is not None:
        check_tensor("linear", "weight.scale", weight.scale, (features,), torch.float32)
    if weight.bias is not None:
        check_tensor("linear", "weight.bias", weight.bias, (features,), *FLOATING)
    silu_mul = activation is Activation.SILU_MUL
    if silu_mul and (features % 2 or residual is not None):
        raise ValueError("linear: SILU_MUL needs an even number of outputs and takes no residual")
    check_act("linear", "out", out, (tokens, features // 2 if silu_mul else features))
    if residual is not None:
        check_tensor("linear", "residual", residual, (tokens, features), *FLOATING)
    linear_reference(x, weight, out, residual, silu_mul)
