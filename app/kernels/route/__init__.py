"""Which experts of a mixture each token goes to, what each counts, and the tokens of each expert."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.check import check_columns, check_tensor
from app.kernels.dispatch import native, runs_triton
from app.kernels.route.cpu import route_cpu
from app.kernels.route.reference import route_reference
from app.kernels.route.rule import Groups, RoutingRule, Scoring
from app.kernels.types import Routing

__all__ = ["MAX_EXPERTS", "Groups", "RoutingRule", "Scoring", "route"]

MAX_EXPERTS = 1024


def route(
    logits_TX: Tensor,
    routing: Routing,
    rule: RoutingRule,
    *,
    bias_X: Tensor | None = None,
    factor_X: Tensor | None = None,
) -> None:
    """Chooses the experts with the largest logits, as many as ``routing`` has room for.

    With a bias or groups those with the largest ``score + bias``, in the best groups. The bias takes part in the choice
    alone, not in the weights (Wang et al. 2024, arXiv:2408.15664).

    Of equal values the lower index comes first; a NaN comes before everything, and makes its token's weights NaN.
    Weights are fp32. Everything has a place of fixed size, whatever is chosen: nothing waits for a GPU.

    Args:
        logits_TX: [T, X] fp32, X at most 1,024; may be columns of a wider tensor.
        routing: to be filled; k of X experts a token.
        bias_X: [X] fp32.
        factor_X: [X] fp32, on the weights of each expert, behind all else; None: 1.

    Raises:
        ValueError: an argument's shape or dtype does not fit, or the groups do not hold k experts.
    """
    tokens, experts = logits_TX.shape
    chosen = routing.experts.shape[-1]
    if not 0 < chosen <= experts <= MAX_EXPERTS:
        raise ValueError(f"route: cannot choose {chosen} of {experts} experts (of {MAX_EXPERTS} at most)")
    _check_groups(rule.groups, experts, chosen)
    check_columns("route", "logits", logits_TX, (tokens, experts), torch.float32)
    if bias_X is not None:
        check_tensor("route", "bias", bias_X, (experts,), torch.float32)
    if factor_X is not None:
        check_tensor("route", "factor", factor_X, (experts,), torch.float32)
    check_routing("route", routing, tokens, experts)
    if runs_triton(logits_TX):
        from app.kernels.route.triton import route_triton  # only a GPU needs Triton

        route_triton(logits_TX, routing, rule, bias_X, factor_X)
    elif native("route", logits_TX, bias_X, factor_X):
        route_cpu(logits_TX, routing, rule, bias_X, factor_X)
    else:
        route_reference(logits_TX, routing, rule, bias_X, factor_X)


def _check_groups(groups: Groups | None, experts: int, chosen: int) -> None:
    if groups is None:
        return
    size = experts // groups.count if 0 < groups.count <= experts else 0
    if size * groups.count != experts or not 0 < groups.best <= min(size, 2):
        raise ValueError(f"route: {experts} experts are not {groups.count} groups judged by their best {groups.best}")
    if not 0 < groups.chosen <= groups.count or groups.chosen * size < chosen:
        raise ValueError(f"route: {groups.chosen} of {groups.count} groups do not hold {chosen} experts")


def check_routing(op: str, routing: Routing, tokens: int, experts: int) -> None:
    """Checks the shapes and dtypes of what tells ``tokens`` tokens' experts.

    Raises:
        ValueError: they do not fit.
    """
    chosen = routing.experts.shape[-1]
    check_tensor(op, "routing.experts", routing.experts, (tokens, chosen), torch.int32)
    check_tensor(op, "routing.weights", routing.weights, (tokens, chosen), torch.float32)
    check_tensor(op, "routing.slots", routing.slots, (tokens * chosen,), torch.int32)
    check_tensor(op, "routing.offsets", routing.offsets, (experts + 1,), torch.int32)
