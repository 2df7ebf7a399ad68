"""What the tests of ``route`` and ``experts`` share: buffers, routings, the formula in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from app.kernels.activation import Activation
from app.kernels.experts import SILU, ExpertsScratch, ExpertsScratchLayout, Gate, experts
from app.kernels.int8 import quantize
from app.kernels.route import Groups, RoutingRule, Scoring
from app.kernels.route.reference import route_reference
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
CLAMPED = Gate(alpha=1.702, limit=0.7)
"""Low enough for most tests' values to meet it."""
RULES = [
    RoutingRule(scoring=Scoring.SIGMOID, normalise=True, scale=2.5, groups=Groups(count=8, chosen=4, best=1)),
    RoutingRule(scoring=Scoring.SIGMOID, normalise=True, least_sum=3.0, groups=Groups(count=4, chosen=3, best=2)),
    RoutingRule(normalise=False, scale=16.0, groups=Groups(count=8, chosen=8)),
    RoutingRule(normalise=False, groups=Groups(count=2, chosen=1, best=2)),
    RoutingRule(normalise=True, least_sum=0.4),
    RoutingRule(scoring=Scoring.SIGMOID, normalise=True, sum_offset=0.5),
    RoutingRule(scoring=Scoring.SOFTMAX_CHOSEN, normalise=False, scale=0.5),
]
"""Beyond how to score, and whether to normalise; for 8 experts and more."""


def bias_of(experts: int) -> Tensor:
    """A bias that has a say in the choice."""
    return 0.3 * randn(experts, seed=11)


def empty_routing(tokens: int, count: int, chosen: int) -> Routing:
    """Room for a routing, poisoned."""
    return Routing(
        poisoned(tokens, chosen, dtype=torch.int32),
        poisoned(tokens, chosen),
        poisoned(tokens * chosen, dtype=torch.int32),
        poisoned(count + 1, dtype=torch.int32),
    )


def routing_of(logits_TX: Tensor, chosen: int) -> Routing:
    """The routing of these logits, with normalised weights, by the specification."""
    tokens, count = logits_TX.shape
    routing = empty_routing(tokens, count, chosen)
    route_reference(logits_TX, routing, RoutingRule(normalise=True), None, None)
    return routing


def small(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weights whose outputs are of order 1."""
    return (randn(*shape, seed=seed) / math.sqrt(shape[-1])).to(dtype)


def plain_experts(count: int, inner: int, width: int, dtype: torch.dtype = torch.float32) -> ExpertsWeight:
    """Floating experts."""
    return ExpertsWeight(
        small(count, 2 * inner, width, seed=2, dtype=dtype), small(count, width, inner, seed=3, dtype=dtype)
    )


def biased(weight: ExpertsWeight) -> ExpertsWeight:
    """The same with biases, of the dtype that such weights have."""
    dtype = weight.gate_up.dtype if weight.gate_up_scale is None else torch.float32
    gate_up = randn(weight.count, 2 * weight.inner, seed=11, dtype=dtype)
    return replace(weight, gate_up_bias=gate_up, down_bias=randn(weight.count, weight.width, seed=12, dtype=dtype))


def int8_experts(count: int, inner: int, width: int, int8_input: ActFormat) -> ExpertsWeight:
    """int8 experts that want that input."""
    gate_up, gate_up_scale = quantize(small(count, 2 * inner, width, seed=2))
    down, down_scale = quantize(small(count, width, inner, seed=3))
    return ExpertsWeight(gate_up, down, gate_up_scale, down_scale, int8_input)


def _expert(weight: ExpertsWeight, expert: int) -> tuple[LinearWeight, LinearWeight]:
    def of(stack: Tensor | None) -> Tensor | None:
        return None if stack is None else stack[expert]

    return (
        LinearWeight(weight.gate_up[expert], of(weight.gate_up_scale), of(weight.gate_up_bias)),
        LinearWeight(weight.down[expert], of(weight.down_scale), of(weight.down_bias)),
    )


def hidden64(x: Act, weight: ExpertsWeight, routing: Routing, gate: Gate = SILU) -> Tensor:
    """[T, k, I]: what is multiplied by down projections, before it is rounded."""
    tokens, chosen = routing.experts.shape
    hidden = torch.empty(tokens, chosen, weight.inner, dtype=torch.float64)
    for token in range(tokens):
        row = Act(dequantize(x)[token : token + 1])
        for j, expert in enumerate(routing.experts[token].tolist()):
            first = _expert(weight, expert)[0]
            if gate.limit is None:
                activation = Activation(f"{gate.activation}_mul")
                hidden[token, j] = linear64(row, first, activation=activation)
            else:
                hidden[token, j] = _clamped64(linear64(row, first)[0], gate.alpha, gate.limit)
    return hidden


def _clamped64(both: Tensor, alpha: float, limit: float) -> Tensor:
    gate, up = both.chunk(2)
    gate, up = torch.where(gate > limit, limit, gate), torch.where(up.abs() > limit, limit * up.sign(), up)
    return (up + 1) * gate / (1 + torch.exp(-alpha * gate))


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
    residual_gate: Tensor | None = None,
    gate: Gate = SILU,
) -> Tensor:
    """What ``experts`` makes of them, between poisoned buffers."""
    return run_with_scratch(x, weight, routing, dtype, residual, residual_gate, gate)[0]


def run_with_scratch(
    x: Act,
    weight: ExpertsWeight | PackedExperts,
    routing: Routing,
    dtype: torch.dtype = torch.float32,
    residual: Tensor | None = None,
    residual_gate: Tensor | None = None,
    gate: Gate = SILU,
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
    experts(x, weight, routing, out, scratch, residual=residual, residual_gate=residual_gate, gate=gate)
    return out, scratch


def gates_of(tokens: int) -> Tensor:
    """[T, 1]: the last column of a wider tensor, as a layer has it."""
    wide = poisoned(tokens, 6)
    wide[:, 5:] = 3 * randn(tokens, 1, seed=8)
    return wide[:, 5:]


def gated64(residual: Tensor, gate: Tensor) -> Tensor:
    """[T, D]: the residual times the sigmoid of its gate."""
    wide: Tensor = residual.double() / (1 + (-gate.double()).exp())
    return wide
