"""``route`` on a GPU: a program a token chooses, then a program an expert looks for its slots among all.

Held against the reference in Triton's interpreter; compiled ahead of time for sm_90. No GPU has run it.
"""

import triton
import triton.language as tl
from torch import Tensor

from app.kernels.gpu.launch import launch
from app.kernels.gpu.lib import let_next_start, wait_for_inputs
from app.kernels.gpu.tuning import launch_shape
from app.kernels.types import Routing

_INT32_MAX: tl.constexpr = tl.constexpr(2147483647)
_SIGMOID: tl.constexpr = tl.constexpr("sigmoid")
_SOFTMAX: tl.constexpr = tl.constexpr("softmax")


@triton.jit
def _route(
    logits,
    experts,
    weights,
    EXPERTS: tl.constexpr,
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
    logit = tl.load(logits + token * EXPERTS + index, mask=inside, other=0.0) + 0.0  # of -0 makes 0
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


def route_triton(logits_TX: Tensor, routing: Routing, scoring: str, normalise: bool) -> None:
    """As the public ``route``."""
    (tokens, experts), chosen = logits_TX.shape, routing.experts.shape[1]
    launch(
        _route,
        (tokens,),
        {"logits": logits_TX, "experts": routing.experts, "weights": routing.weights},
        {
            "EXPERTS": experts,
            "CHOSEN": chosen,
            "SCORING": scoring,
            "NORMALISE": normalise,
            "BLOCK_X": triton.next_power_of_2(experts),
            "BLOCK_K": triton.next_power_of_2(chosen),
        },
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
