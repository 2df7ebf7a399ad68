"""Specification of ``route`` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.route.rule import Groups, RoutingRule, Scoring
from app.kernels.types import Routing


def route_reference(
    logits_TX: Tensor, routing: Routing, rule: RoutingRule, bias_X: Tensor | None, factor_X: Tensor | None = None
) -> None:
    experts, chosen = logits_TX.shape[1], routing.experts.shape[1]
    # A sort, which is stable: which of equal values torch.topk takes first is not specified.
    values_TX = _values(logits_TX, rule, bias_X)
    order_TK = values_TX.sort(dim=-1, descending=True, stable=True).indices[:, :chosen]
    routing.experts.copy_(order_TK)
    routing.weights.copy_(_weights(logits_TX, logits_TX.gather(1, order_TK), rule.scoring))
    if rule.normalise:
        sums = routing.weights.sum(dim=-1, keepdim=True).clamp(min=rule.least_sum)
        routing.weights.div_(sums + rule.sum_offset)
    routing.weights.mul_(rule.scale if factor_X is None else rule.scale * factor_X[order_TK])
    flat = routing.experts.view(-1).long()
    routing.slots.copy_(flat.sort(stable=True).indices)
    routing.offsets[0] = 0
    routing.offsets[1:] = torch.bincount(flat, minlength=experts).cumsum(0)


def _values(logits_TX: Tensor, rule: RoutingRule, bias_X: Tensor | None) -> Tensor:
    """By which experts are chosen."""
    if bias_X is None and not rule.is_grouped:
        return logits_TX
    values_TX = logits_TX
    if rule.scoring is Scoring.SIGMOID:
        values_TX = logits_TX.sigmoid()
    elif rule.scoring is Scoring.SOFTMAX:
        values_TX = logits_TX.softmax(dim=-1)
    if bias_X is not None:
        values_TX = values_TX + bias_X
    return values_TX if rule.groups is None else _in_best_groups(values_TX, rule.groups)


def _in_best_groups(values_TX: Tensor, groups: Groups) -> Tensor:
    """-inf where an expert is in another group."""
    values_TGS = values_TX.view(-1, groups.count, values_TX.shape[1] // groups.count)
    worth_TG = values_TGS.topk(groups.best, dim=-1).values.sum(dim=-1)
    best = worth_TG.sort(dim=-1, descending=True, stable=True).indices[:, : groups.chosen]
    open_TG = torch.zeros_like(worth_TG, dtype=torch.bool).scatter_(1, best, True)
    return torch.where(open_TG[:, :, None], values_TGS, -torch.inf).flatten(1)


def _weights(logits_TX: Tensor, logits_TK: Tensor, scoring: Scoring) -> Tensor:
    if scoring is Scoring.SIGMOID:
        weights = logits_TK.sigmoid()
    elif scoring is Scoring.SOFTMAX_CHOSEN:
        weights = logits_TK.softmax(dim=-1)
    else:
        weights = (logits_TK - logits_TX.logsumexp(dim=-1, keepdim=True)).exp()
    # A NaN among the chosen is the first of them.
    return torch.where(logits_TK[:, :1].isnan(), torch.nan, weights)
