"""Linear layer with its epilogue: bias, residual addition, activation, quantisation."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.activation import Activation
from app.kernels.check import FLOATING, check_act, check_group_scale, check_tensor, check_token_scale
from app.kernels.dispatch import fall_back, runs_triton
from app.kernels.linear.cpu import linear_cpu
from app.kernels.linear.reference import linear_reference
from app.kernels.lora import LowRank, check_low_rank, check_packed_low_rank
from app.kernels.types import Act, ActFormat, NativeWeight, Weight

__all__ = ["Activation", "linear", "scratch_width"]

_NATIVE_FLOATING = (torch.float32, torch.bfloat16)


def scratch_width(weight: Weight, out_format: ActFormat, activation: Activation, *, adapted: bool = False) -> int:
    """Elements of the scratch for each token that :func:`linear` needs for such a layer; 0: it needs none.

    Args:
        adapted: whether it is called with adapters.
    """
    if isinstance(weight, NativeWeight):
        features = weight.out_features
    elif runs_triton(weight.values):
        features = weight.values.shape[0]
        if activation.gated and (weight.scale is None or adapted):
            return features
    else:
        return 0
    if out_format is ActFormat.FLOAT:
        return 0
    return features // 2 if activation.gated else features


def linear(
    x: Act,
    weight: Weight,
    out: Act,
    *,
    residual: Tensor | None = None,
    activation: Activation = Activation.NONE,
    scratch: Tensor | None = None,
    low_rank: LowRank | None = None,
) -> None:
    """``y = x @ weight.T + bias``, then ``out`` is ``y + residual``, ``activation(y)`` or ``activation(gate) * up``.
    What adapters add (:func:`app.kernels.lora.lora`) is added to ``y`` first.

    Accumulates in fp32 (int8: exactly, in int32). For int8 inputs, and for bf16 inputs without an epilogue, the result
    is rounded once, to ``out``. An int8 ``out`` is quantised by groups or, with one scale a token, by tokens (Triton
    does only the latter).

    A weight packed or in blocks runs natively, whatever the mode; it takes int8 or bf16 for x, fp32 or bf16 for the
    rest.

    Args:
        x: [T, K] in the format that the weight asks for.
        weight: [N, K]; packed with ``gate_up`` exactly for a gated activation.
        out: [T, N]; [T, N / 2] with a gated activation.
        residual: [T, N] floating, not with an activation; may be the very tensor ``out.values``.
        scratch: [T, :func:`scratch_width`] floating (a packed weight takes fp32 or bf16), for what is between two
            kernels: the product that becomes an int8 ``out``, or a gate's and an up projection's. None where that is 0.
        low_rank: adapters of the layer, packed if its weight is, and which of them each token has; a gate's outputs
            come before an up projection's.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    if isinstance(weight, NativeWeight):
        _linear_packed(x, weight, out, residual, activation, scratch, low_rank)
        return
    tokens, (features, width) = x.values.shape[0], weight.values.shape
    check_act("linear", "x", x, (tokens, width))
    if (x.scale is None) != (weight.act_format is ActFormat.FLOAT):
        raise ValueError(f"linear: x is {x.values.dtype} but weight is {weight.values.dtype}")
    dtype = x.values.dtype if weight.scale is None else torch.int8
    check_tensor("linear", "weight", weight.values, (features, width), dtype)
    if weight.scale is not None:
        check_tensor("linear", "weight.scale", weight.scale, (features,), torch.float32)
    if weight.bias is not None:
        check_tensor("linear", "weight.bias", weight.bias, (features,), *FLOATING)
    _check_activation(activation, residual)
    if activation.gated and features % 2:
        raise ValueError(f"linear: {activation.name} needs an even number of outputs, not {features}")
    check_act("linear", "out", out, (tokens, features // 2 if activation.gated else features))
    if residual is not None:
        check_tensor("linear", "residual", residual, (tokens, features), *FLOATING)
    if low_rank is not None:
        check_low_rank("linear", x, low_rank, features)
    if runs_triton(x.values):
        check_token_scale("linear", x)
        check_token_scale("linear", out)
        _check_scratch(weight, out, activation, scratch, *FLOATING, adapted=low_rank is not None)
        from app.kernels.linear.triton import linear_triton  # only a GPU needs Triton

        linear_triton(x, weight, out, residual, activation, scratch, low_rank)
        return
    fall_back("linear", "its weight is not packed")
    linear_reference(x, weight, out, residual, activation, low_rank)


def _linear_packed(
    x: Act,
    weight: NativeWeight,
    out: Act,
    residual: Tensor | None,
    activation: Activation,
    scratch: Tensor | None,
    low_rank: LowRank | None,
) -> None:
    tokens = x.values.shape[0]
    check_tensor("linear", "x", x.values, (tokens, weight.in_features), weight.input_dtype)
    check_act("linear", "x", x, (tokens, weight.in_features))
    check_group_scale("linear", x)
    _check_activation(activation, residual)
    if activation.gated != weight.gate_up:
        raise ValueError(
            f"linear: {activation.name} with gate_up {weight.gate_up}: gates are packed so, nothing else is"
        )
    shape = (tokens, weight.out_features // 2 if activation.gated else weight.out_features)
    check_act("linear", "out", out, shape)
    if out.scale is None:
        check_tensor("linear", "out", out.values, shape, *_NATIVE_FLOATING)
    _check_scratch(weight, out, activation, scratch, *_NATIVE_FLOATING)
    if residual is not None:
        check_tensor("linear", "residual", residual, shape, *_NATIVE_FLOATING)
    if low_rank is not None:
        check_packed_low_rank("linear", x, low_rank, weight)
    linear_cpu(x, weight, out, residual, activation, scratch, low_rank)


def _check_activation(activation: Activation, residual: Tensor | None) -> None:
    if activation is not Activation.NONE and residual is not None:
        raise ValueError(f"linear: {activation.name} takes no residual")


def _check_scratch(
    weight: Weight,
    out: Act,
    activation: Activation,
    scratch: Tensor | None,
    *dtypes: torch.dtype,
    adapted: bool = False,
) -> None:
    out_format = ActFormat.FLOAT if out.scale is None else ActFormat.INT8
    width = scratch_width(weight, out_format, activation, adapted=adapted)
    if width == 0:
        return
    if scratch is None:
        raise ValueError(f"linear: this layer needs a scratch {width} wide")
    check_tensor("linear", "scratch", scratch, (out.values.shape[0], width), *dtypes)
