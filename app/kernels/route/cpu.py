"""Binding of the native ``route``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim, emit
from app.kernels.types import Routing

_SCORINGS = {"softmax": 0, "softmax chosen": 1, "sigmoid": 2}


def route_cpu(logits_TX: Tensor, routing: Routing, scoring: str, normalise: bool) -> None:
    (tokens, experts), chosen = logits_TX.shape, routing.experts.shape[1]
    choice = Call(
        "route",
        Dim.TOKENS,
        logits=logits_TX,
        experts=routing.experts,
        weights=routing.weights,
        num_experts=experts,
        chosen=chosen,
        scoring=_SCORINGS[scoring],
        normalise=int(normalise),
    )
    grouping = Call(
        "group_slots",
        Dim.TOKENS,
        experts=routing.experts,
        slots=routing.slots,
        offsets=routing.offsets,
        num_experts=experts,
        chosen=chosen,
    )
    emit([choice, grouping], tokens=tokens)
