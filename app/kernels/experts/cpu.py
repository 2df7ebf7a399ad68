"""Binding of the native ``experts``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim, emit
from app.kernels.experts.gate import SILU, Gate
from app.kernels.native.abi import ACTIVATIONS
from app.kernels.native.program import dtype_code
from app.kernels.types import Act, PackedExperts, Routing


def experts_cpu(
    x: Act,
    weight: PackedExperts,
    routing: Routing,
    out_TD: Tensor,
    hidden: Act,
    residual: Tensor | None,
    residual_gate: Tensor | None,
    gate: Gate,
) -> None:
    calls = experts_calls(x, weight, routing, out_TD, hidden, residual, residual_gate, gate)
    emit(calls, tokens=x.values.shape[0])


def experts_calls(
    x: Act,
    weight: PackedExperts,
    routing: Routing,
    out_TD: Tensor,
    hidden: Act,
    residual: Tensor | None,
    residual_gate: Tensor | None = None,
    gate: Gate = SILU,
) -> list[Call]:
    """Gate and up, then down with the sum."""
    # The first expert's: the others' lie behind it.
    gate_up, down, chosen = weight.gate_up[0], weight.down[0], routing.experts.shape[1]
    first = Call(
        "experts_gate_up",
        Dim.TOKENS,
        x=x.values,
        x_scale=x.scale,
        weight=gate_up.data,
        w_scale=gate_up.scale,
        bias=gate_up.bias,
        slots=routing.slots,
        offsets=routing.offsets,
        hidden=hidden.values,
        hidden_groups=hidden.scale,
        dtype=dtype_code(x.values),
        num_experts=weight.count,
        chosen=chosen,
        k=weight.width,
        n=weight.inner,
        activation=ACTIVATIONS[gate.activation],
        alpha=gate.alpha,
        limit=gate.limit or 0.0,
    )
    second = Call(
        "experts_down",
        Dim.TOKENS,
        hidden=hidden.values,
        hidden_groups=hidden.scale,
        weight=down.data,
        w_scale=down.scale,
        bias=down.bias,
        slots=routing.slots,
        offsets=routing.offsets,
        route_weights=routing.weights,
        residual=residual,
        residual_gate=residual_gate,
        out=out_TD,
        dtype=dtype_code(x.values),
        out_dtype=dtype_code(out_TD),
        residual_dtype=0 if residual is None else dtype_code(residual),
        num_experts=weight.count,
        chosen=chosen,
        k=weight.inner,
        n=weight.width,
        gate_stride=0 if residual_gate is None else residual_gate.stride(0),
    )
    return [first, second]
