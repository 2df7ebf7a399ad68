"""``route`` on a GPU: a program a token chooses, then a program an expert looks for its slots among all.

Held against the reference in Triton's interpreter; compiled ahead of time for sm_90. Not yet run on a GPU.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import let_next_start, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.route.rule import Groups, RoutingRule
from app.kernels.types import Routing

_INT32_MAX: tl.constexpr = tl.constexpr(2147483647)
_SIGMOID: tl.constexpr = tl.constexpr("sigmoid")
_SOFTMAX: tl.constexpr = tl.constexpr("softmax")
_SOFTMAX_CHOSEN: tl.constexpr = tl.constexpr("softmax chosen")


@triton.jit
def _route(
    logits,
    experts,
    weights,
    EXPERTS: tl.constexpr,
    STRIDE: tl.constexpr,
    CHOSEN: tl.constexpr,
    SCORING: tl.constexpr,
    NORMALISE: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    wait_for_inputs(PDL)
    token = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK_X)
    choice = tl.arange(0, BLOCK_K)
    inside = index < EXPERTS
    logit = tl.load(logits + token * STRIDE + index, mask=inside, other=0.0) + 0.0  # of -0 makes 0
    # As integers, which order like the floats: a NaN above all, what is no expert or has been chosen below.
    bits = logit.to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, bits ^ _INT32_MAX, bits)
    order = tl.where(logit == logit, order, _INT32_MAX)
    order = tl.where(inside, order, -_INT32_MAX - 1)
    best = tl.zeros((BLOCK_K,), tl.int32)
    best_logit = tl.full((BLOCK_K,), float("-inf"), tl.float32)
    for j in range(CHOSEN):
        top = tl.max(order, axis=0)
        first = tl.min(tl.where((order == top) & inside, index, BLOCK_X), axis=0)
        # Nothing but the one is added, so that it keeps its value.
        value = tl.sum(tl.where(index == first, logit, 0.0), axis=0)
        best = tl.where(choice == j, first, best)
        best_logit = tl.where(choice == j, value, best_logit)
        order = tl.where(index == first, -_INT32_MAX - 1, order)
        inside = inside & (index != first)
    taken = choice < CHOSEN
    best_top = tl.sum(tl.where(choice == 0, best_logit, 0.0), axis=0)
    if SCORING == _SIGMOID:
        weight = tl.where(taken, 1.0 / (1.0 + tl.exp(-best_logit)), 0.0)
    else:
        weight = tl.where(taken, tl.exp(best_logit - best_top), 0.0)
        total = tl.sum(weight, axis=0)
        if SCORING == _SOFTMAX:
            total = tl.sum(tl.where(index < EXPERTS, tl.exp(logit - best_top), 0.0), axis=0)
        weight = weight / total
    if NORMALISE:
        weight = weight / tl.sum(weight, axis=0)
    weight = tl.where(best_top == best_top, weight, float("nan"))
    tl.store(experts + token * CHOSEN + choice, best, mask=taken)
    tl.store(weights + token * CHOSEN + choice, weight, mask=taken)


@triton.jit
def _order(value, inside):
    """Integers that order like the floats: a NaN above all, what is not inside below all."""
    bits = value.to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, bits ^ _INT32_MAX, bits)
    order = tl.where(value == value, order, _INT32_MAX)
    return tl.where(inside, order, -_INT32_MAX - 1)


@triton.jit
def _is_best(order, member):
    """[groups, members]: the first of each group's greatest."""
    greatest = order == tl.max(order, axis=1)[:, None]
    return member == tl.min(tl.where(greatest, member, _INT32_MAX), axis=1)[:, None]


@triton.jit
def _route_by_scores(
    logits,
    bias,
    factors,
    experts,
    weights,
    EXPERTS: tl.constexpr,
    STRIDE: tl.constexpr,
    CHOSEN: tl.constexpr,
    SCORING: tl.constexpr,
    NORMALISE: tl.constexpr,
    LEAST_SUM: tl.constexpr,
    SUM_OFFSET: tl.constexpr,
    SCALE: tl.constexpr,
    GROUPS: tl.constexpr,
    CHOSEN_GROUPS: tl.constexpr,
    GROUP_BEST: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """As ``_route``, by a rule that has more to it; experts are seen as [groups, members]."""
    let_next_start(PDL)
    SIZE: tl.constexpr = EXPERTS // GROUPS
    token = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, BLOCK_G)
    member = tl.arange(0, BLOCK_S)[None, :]
    choice = tl.arange(0, BLOCK_K)
    inside = (group[:, None] < GROUPS) & (member < SIZE)
    index = group[:, None] * SIZE + member
    wait_for_inputs(PDL)
    logit = tl.load(logits + token * STRIDE + index, mask=inside, other=0.0)
    # 1. Scores, and by what experts are chosen.
    score = logit
    if SCORING == _SIGMOID:
        score = 1.0 / (1.0 + tl.exp(-logit))
    if SCORING == _SOFTMAX:
        number = inside & (logit == logit)
        top = tl.max(tl.max(tl.where(number, logit, float("-inf")), axis=1), axis=0)
        score = tl.where(inside, tl.exp(logit - top), 0.0)
        score = score / tl.sum(tl.sum(score, axis=1), axis=0)
    value = score
    if bias is not None:
        value = score + tl.load(bias + index, mask=inside, other=0.0)
    elif GROUPS == 1:
        value = logit
    value = value + 0.0  # of -0 makes 0
    order = _order(value, inside)
    # 2. The best groups.
    if CHOSEN_GROUPS < GROUPS:
        best = _is_best(order, member)
        # Nothing but the one is added, so that it keeps its value.
        worth = tl.sum(tl.where(best, value, 0.0), axis=1)
        if GROUP_BEST == 2:
            second = _is_best(tl.where(best, -_INT32_MAX - 1, order), member)
            worth += tl.sum(tl.where(second, value, 0.0), axis=1)
        group_order = _order(worth + 0.0, group < GROUPS)
        kept = group < 0
        for _ in range(CHOSEN_GROUPS):
            top_group = tl.max(group_order, axis=0)
            first_group = tl.min(tl.where(group_order == top_group, group, BLOCK_G), axis=0)
            kept = kept | (group == first_group)
            group_order = tl.where(group == first_group, -_INT32_MAX - 1, group_order)
        order = tl.where(kept[:, None], order, -_INT32_MAX - 1)
    # 3. The best experts.
    chosen = tl.zeros((BLOCK_K,), tl.int32)
    chosen_score = tl.zeros((BLOCK_K,), tl.float32)
    for j in range(CHOSEN):
        top_order = tl.max(tl.max(order, axis=1), axis=0)
        first = tl.min(tl.min(tl.where((order == top_order) & inside, index, EXPERTS), axis=1), axis=0)
        hit = (index == first) & inside
        chosen = tl.where(choice == j, first, chosen)
        chosen_score = tl.where(choice == j, tl.sum(tl.sum(tl.where(hit, score, 0.0), axis=1), axis=0), chosen_score)
        order = tl.where(hit, -_INT32_MAX - 1, order)
    # 4. What they count.
    taken = choice < CHOSEN
    lead = tl.sum(tl.where(choice == 0, chosen_score, 0.0), axis=0)
    weight = tl.where(taken, chosen_score, 0.0)
    if SCORING == _SOFTMAX_CHOSEN:
        number = taken & (chosen_score == chosen_score)
        top_score = tl.max(tl.where(number, chosen_score, float("-inf")), axis=0)
        weight = tl.where(taken, tl.exp(chosen_score - top_score), 0.0)
        weight = weight / tl.sum(weight, axis=0)
    if NORMALISE:
        total = tl.sum(weight, axis=0)
        weight = weight / (tl.where(total < LEAST_SUM, LEAST_SUM, total) + SUM_OFFSET)
    weight *= SCALE
    if factors is not None:
        weight *= tl.load(factors + chosen, mask=taken, other=0.0)
    weight = tl.where(lead == lead, weight, float("nan"))
    tl.store(experts + token * CHOSEN + choice, chosen, mask=taken)
    tl.store(weights + token * CHOSEN + choice, weight, mask=taken)


# Compiled once for every number of slots.
@triton.jit(do_not_specialize=["count"])
def _group_slots(experts, slots, offsets, count, EXPERTS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Program e places expert e's slots: behind those of lower experts, which it counts, and in order."""
    let_next_start(PDL)
    wait_for_inputs(PDL)
    expert = tl.program_id(0)
    index = tl.arange(0, BLOCK)
    lower = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, count, BLOCK):
        of = tl.load(experts + start + index, mask=start + index < count, other=EXPERTS)
        lower += (of < expert).to(tl.int32)
    at = tl.sum(lower, axis=0)
    tl.store(offsets + expert, at)
    for start in range(0, count, BLOCK):
        of = tl.load(experts + start + index, mask=start + index < count, other=EXPERTS)
        mine = (of == expert).to(tl.int32)
        tl.store(slots + at + tl.cumsum(mine, axis=0) - 1, start + index, mask=mine == 1)
        at += tl.sum(mine, axis=0)
    if expert == EXPERTS - 1:
        tl.store(offsets + EXPERTS, at)


_ONE_GROUP = Groups(count=1, chosen=1)


def route_triton(
    logits_TX: Tensor, routing: Routing, rule: RoutingRule, bias_X: Tensor | None, factor_X: Tensor | None
) -> None:
    """As the public ``route``."""
    (tokens, experts), chosen = logits_TX.shape, routing.experts.shape[1]
    plain = rule.is_plain and bias_X is None and factor_X is None
    groups = rule.groups or _ONE_GROUP
    args = {"logits": logits_TX, "experts": routing.experts, "weights": routing.weights}
    constants = {
        "EXPERTS": experts,
        "STRIDE": logits_TX.stride(0),
        "CHOSEN": chosen,
        "SCORING": rule.scoring.value,
        "NORMALISE": rule.normalise,
        "BLOCK_K": triton.next_power_of_2(chosen),
    }
    more = {
        "LEAST_SUM": rule.least_sum,
        "SUM_OFFSET": rule.sum_offset,
        "SCALE": rule.scale,
        "GROUPS": groups.count,
        "CHOSEN_GROUPS": groups.chosen,
        "GROUP_BEST": groups.best,
        "BLOCK_G": triton.next_power_of_2(groups.count),
        "BLOCK_S": triton.next_power_of_2(experts // groups.count),
    }
    launch(
        _route if plain else _route_by_scores,
        (tokens,),
        args if plain else {**args, "bias": bias_X, "factors": factor_X},
        {**constants, "BLOCK_X": triton.next_power_of_2(experts)} if plain else {**constants, **more},
        **launch_shape("route", experts=experts),
    )
    slots = tokens * chosen
    shape = launch_shape("group_slots", slots=slots)
    launch(
        _group_slots,
        (experts if tokens else 0,),
        {"experts": routing.experts, "slots": routing.slots, "offsets": routing.offsets, "count": slots},
        {"EXPERTS": experts, "BLOCK": shape.pop("BLOCK")},
        **shape,
    )
