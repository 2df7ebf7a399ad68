"""Binding of the native ``linear``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.activation import Activation
from app.kernels.dispatch import Call, Dim, emit
from app.kernels.lora.cpu import added_arguments, lora_call
from app.kernels.lora.step import LowRank
from app.kernels.native.abi import ACTIVATIONS
from app.kernels.native.program import dtype_code
from app.kernels.quantize.cpu import quantize_call
from app.kernels.types import Act, BlockWeight, NativeWeight


def linear_cpu(
    x: Act,
    weight: NativeWeight,
    out: Act,
    residual: Tensor | None,
    activation: Activation,
    scratch: Tensor | None,
    low_rank: LowRank | None,
) -> None:
    floating = out.values if scratch is None or out.scale is None else scratch
    calls = [] if low_rank is None else [lora_call(x, low_rank)]
    calls.append(linear_call(x, weight, floating, residual, activation, Dim.TOKENS, low_rank))
    if out.scale is not None:
        calls.append(quantize_call(floating, out, Dim.TOKENS))
    emit(calls, tokens=x.values.shape[0])


def linear_call(
    x: Act,
    weight: NativeWeight,
    out: Tensor,
    residual: Tensor | None,
    activation: Activation,
    dim: Dim,
    low_rank: LowRank | None = None,
) -> Call:
    """The native ``linear`` alone, into a floating ``out``.

    Args:
        low_rank: adapters of the layer, whose scratch the native ``lora`` has filled.
    """
    op, own = "linear", dict[str, Tensor | int | None]()
    if isinstance(weight, BlockWeight):
        op, own = "block_linear", {"panels": weight.panels, "count": weight.panels.shape[0]}
    else:
        own["w_scale"] = weight.scale
    return Call(
        op,
        dim,
        **own,
        x=x.values,
        x_scale=x.scale,
        weight=weight.data,
        bias=weight.bias,
        residual=residual,
        out=out,
        x_dtype=dtype_code(x.values),
        out_dtype=dtype_code(out),
        residual_dtype=0 if residual is None else dtype_code(residual),
        k=weight.in_features,
        n=weight.out_features,
        activation=ACTIVATIONS[activation.function],
        gate_up=int(activation.gated),
        dim_of_rows=int(dim),
        **({} if low_rank is None else added_arguments(low_rank)),
    )
