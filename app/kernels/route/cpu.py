"""Binding of the native ``route``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim, emit
from app.kernels.route.rule import Groups, RoutingRule, Scoring
from app.kernels.types import Routing

_SCORINGS = {Scoring.SOFTMAX: 0, Scoring.SOFTMAX_CHOSEN: 1, Scoring.SIGMOID: 2}
_ONE_GROUP = Groups(count=1, chosen=1)


def route_cpu(
    logits_TX: Tensor, routing: Routing, rule: RoutingRule, bias_X: Tensor | None, factor_X: Tensor | None
) -> None:
    (tokens, experts), chosen = logits_TX.shape, routing.experts.shape[1]
    groups = rule.groups or _ONE_GROUP
    choice = Call(
        "route",
        Dim.TOKENS,
        logits=logits_TX,
        bias=bias_X,
        experts=routing.experts,
        weights=routing.weights,
        logits_stride=logits_TX.stride(0),
        num_experts=experts,
        chosen=chosen,
        scoring=_SCORINGS[rule.scoring],
        normalise=int(rule.normalise),
        plain=int(rule.is_plain and bias_X is None and factor_X is None),
        groups=groups.count,
        chosen_groups=groups.chosen,
        group_best=groups.best,
        least_sum=rule.least_sum,
        scale=rule.scale,
        sum_offset=rule.sum_offset,
        factors=factor_X,
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
