"""What the tests of ``route`` and ``experts`` share: buffers, routings, the formula in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from app.kernels.activation import Activation
from app.kernels.experts import ExpertsScratch, ExpertsScratchLayout, experts
from app.kernels.int8 import quantize
from app.kernels.route import Scoring, route
from app.kernels.types import (
    Act,
    ActFormat,
    ExpertsWeight,
    LinearWeight,
    PackedExperts,
    Routing,
    StepArena,
)
from tests.kernels.util import dequantize, linear64, poisoned, randn

CPU = torch.device("cpu")


def empty_routing(tokens: int, count: int, chosen: int) -> Routing:
    """Room for a routing, poisoned."""
    return Routing(
        poisoned(tokens, chosen, dtype=torch.int32),
        poisoned(tokens, chosen),
        poisoned(tokens * chosen, dtype=torch.int32),
        poisoned(count + 1, dtype=torch.int32),
    )


def routing_of(logits_TX: Tensor, chosen: int) -> Routing:
    """The routing of these logits, with normalised weights."""
    tokens, count = logits_TX.shape
    routing = empty_routing(tokens, count, chosen)
    route(logits_TX, routing, scoring=Scoring.SOFTMAX, normalise=True)
    return routing


def small(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weights whose outputs are of order 1."""
    return (randn(*shape, seed=seed) / math.sqrt(shape[-1])).to(dtype)


def plain_experts(count: int, inner: int, width: int, dtype: torch.dtype = torch.float32) -> ExpertsWeight:
    """Floating experts."""
    return ExpertsWeight(
        small(count, 2 * inner, width, seed=2, dtype=dtype), small(count, width, inner, seed=3, dtype=dtype)
    )


def int8_experts(count: int, inner: int, width: int, int8_input: ActFormat) -> ExpertsWeight:
    """int8 experts that want that input."""
    gate_up, gate_up_scale = quantize(small(count, 2 * inner, width, seed=2))
    down, down_scale = quantize(small(count, width, inner, seed=3))
    return ExpertsWeight(gate_up, down, gate_up_scale, down_scale, int8_input)


def _expert(weight: ExpertsWeight, expert: int) -> tuple[LinearWeight, LinearWeight]:
    if weight.gate_up_scale is None or weight.down_scale is None:
        return LinearWeight(weight.gate_up[expert]), LinearWeight(weight.down[expert])
    return (
        LinearWeight(weight.gate_up[expert], weight.gate_up_scale[expert]),
        LinearWeight(weight.down[expert], weight.down_scale[expert]),
    )


def hidden64(x: Act, weight: ExpertsWeight, routing: Routing) -> Tensor:
    """[T, k, I]: what is multiplied by down projections, before it is rounded."""
    tokens, chosen = routing.experts.shape
    hidden = torch.empty(tokens, chosen, weight.inner, dtype=torch.float64)
    for token in range(tokens):
        row = Act(dequantize(x)[token : token + 1])
        for j, expert in enumerate(routing.experts[token].tolist()):
            hidden[token, j] = linear64(row, _expert(weight, expert)[0], activation=Activation.SILU_MUL)
    return hidden


def experts64(hidden_TKI: Tensor, weight: ExpertsWeight, routing: Routing) -> Tensor:
    """[T, D] in float64, of what the down projections are given."""
    tokens, chosen = routing.experts.shape
    out = torch.zeros(tokens, weight.width, dtype=torch.float64)
    for token in range(tokens):
        for j in range(chosen):
            down = _expert(weight, int(routing.experts[token, j]))[1]
            result = linear64(Act(hidden_TKI[token, j][None]), down)
            out[token] += routing.weights[token, j].double() * result[0]
    return out


def run(
    x: Act,
    weight: ExpertsWeight | PackedExperts,
    routing: Routing,
    dtype: torch.dtype = torch.float32,
    residual: Tensor | None = None,
) -> Tensor:
    """What ``experts`` makes of them, between poisoned buffers."""
    return run_with_scratch(x, weight, routing, dtype, residual)[0]


def run_with_scratch(
    x: Act,
    weight: ExpertsWeight | PackedExperts,
    routing: Routing,
    dtype: torch.dtype = torch.float32,
    residual: Tensor | None = None,
) -> tuple[Tensor, ExpertsScratch]:
    """Likewise, and the scratch as it was left."""
    tokens, chosen = routing.experts.shape
    arena = StepArena(max(tokens, 1), CPU)
    arena.begin(tokens)
    scratch = ExpertsScratchLayout.of(weight, chosen, dtype).take(arena)
    for buffer in (scratch.hidden.values, scratch.hidden.scale, scratch.products):
        if buffer is not None:
            buffer.fill_(float("nan") if buffer.is_floating_point() else 99)
    out = poisoned(tokens, weight.width, dtype=dtype)
    experts(x, weight, routing, out, scratch, residual=residual)
    return out, scratch
