"""Binding of the native ``experts``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim, emit
from app.kernels.native.program import dtype_code
from app.kernels.types import Act, PackedExperts, Routing


def experts_cpu(
    x: Act, weight: PackedExperts, routing: Routing, out_TD: Tensor, hidden: Act, residual: Tensor | None
) -> None:
    emit(experts_calls(x, weight, routing, out_TD, hidden, residual), tokens=x.values.shape[0])


def experts_calls(
    x: Act, weight: PackedExperts, routing: Routing, out_TD: Tensor, hidden: Act, residual: Tensor | None
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
        slots=routing.slots,
        offsets=routing.offsets,
        hidden=hidden.values,
        hidden_groups=hidden.scale,
        dtype=dtype_code(x.values),
        num_experts=weight.count,
        chosen=chosen,
        k=weight.width,
        n=weight.inner,
    )
    second = Call(
        "experts_down",
        Dim.TOKENS,
        hidden=hidden.values,
        hidden_groups=hidden.scale,
        weight=down.data,
        w_scale=down.scale,
        slots=routing.slots,
        offsets=routing.offsets,
        route_weights=routing.weights,
        residual=residual,
        out=out_TD,
        dtype=dtype_code(x.values),
        out_dtype=dtype_code(out_TD),
        residual_dtype=0 if residual is None else dtype_code(residual),
        num_experts=weight.count,
        chosen=chosen,
        k=weight.inner,
        n=weight.width,
    )
    return [first, second]
