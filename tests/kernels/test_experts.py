"""``experts`` in plain torch: the specification against a float64 formula."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from app.kernels import dispatch
from app.kernels.dispatch import FallbackError
from app.kernels.experts import GELU_TANH, SILU, Gate, experts
from app.kernels.int8 import quantize_tokens
from app.kernels.types import Act, ActFormat, ExpertsWeight
from tests.kernels.mixture import (
    CLAMPED,
    biased,
    empty_routing,
    experts64,
    gated64,
    gates_of,
    hidden64,
    int8_experts,
    plain_experts,
    routing_of,
    run,
    run_with_scratch,
)
from tests.kernels.util import TOLERANCE, dequantize, quantized, randn, relative_error, steps


@pytest.fixture(autouse=True)
def reference() -> Iterator[None]:
    dispatch.configure(dispatch.Mode.REFERENCE, 1)
    yield
    dispatch.configure(dispatch.Mode.AUTO, 1)


# (T, X, k, I, D)
SHAPES = [(1, 8, 2, 96, 63), (17, 5, 5, 65, 130), (40, 12, 3, 7, 33), (0, 4, 2, 8, 8)]


KINDS = [("plain", ActFormat.FLOAT), *(("int8", fmt) for fmt in ActFormat)]


def weight_of(kind: str, fmt: ActFormat, count: int, inner: int, width: int) -> ExpertsWeight:
    return plain_experts(count, inner, width) if kind == "plain" else int8_experts(count, inner, width, fmt)


def x_of(fmt: ActFormat, tokens: int, width: int) -> Act:
    x = randn(tokens, width, seed=1)
    if fmt is ActFormat.FLOAT:
        return Act(x)
    return quantized(x) if fmt is ActFormat.INT8 else Act(*quantize_tokens(x))


@pytest.mark.parametrize(("kind", "fmt"), KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_weighted_sum_of_the_chosen(kind: str, fmt: ActFormat, shape: tuple[int, int, int, int, int]) -> None:
    tokens, count, chosen, inner, width = shape
    weight, x = weight_of(kind, fmt, count, inner, width), x_of(fmt, tokens, width)
    routing = routing_of(randn(tokens, count, seed=5), chosen)
    residual = randn(tokens, width, seed=6)
    out, scratch = run_with_scratch(x, weight, routing, residual=residual)
    if not tokens:
        return
    hidden = hidden64(x, weight, routing)
    kept = torch.empty_like(hidden).view(-1, inner)
    kept[routing.slots.long()] = dequantize(scratch.hidden)
    if fmt is ActFormat.FLOAT:
        assert relative_error(kept, hidden.view(-1, inner)) < 1e-6
    else:
        error = (kept - hidden.view(-1, inner)).abs()[routing.slots.long()]
        assert (error <= 0.501 * steps(scratch.hidden)).all()
    expected = experts64(kept.view_as(hidden), weight, routing) + residual.double()
    assert relative_error(out, expected) < 1e-6


@pytest.mark.parametrize(("kind", "fmt"), KINDS)
@pytest.mark.parametrize("gate", [SILU, GELU_TANH, CLAMPED])
def test_biases_and_the_clamped_gate(kind: str, fmt: ActFormat, gate: Gate) -> None:
    tokens, count, chosen, inner, width = SHAPES[1]
    weight, x = biased(weight_of(kind, fmt, count, inner, width)), x_of(fmt, tokens, width)
    routing = routing_of(randn(tokens, count, seed=5), chosen)
    out, scratch = run_with_scratch(x, weight, routing, gate=gate)
    hidden = hidden64(x, weight, routing, gate)
    kept = torch.empty_like(hidden).view(-1, inner)
    kept[routing.slots.long()] = dequantize(scratch.hidden)
    if fmt is ActFormat.FLOAT:
        assert relative_error(kept, hidden.view(-1, inner)) < 1e-6
    assert relative_error(out, experts64(kept.view_as(hidden), weight, routing)) < 1e-6


def test_bf16_rounds_once_to_its_output() -> None:
    weight, x = plain_experts(6, 64, 40, torch.bfloat16), Act(randn(9, 40, seed=1, dtype=torch.bfloat16))
    routing = routing_of(randn(9, 6, seed=5), 2)
    expected = experts64(hidden64(x, weight, routing), weight, routing)
    assert relative_error(run(x, weight, routing, torch.bfloat16), expected) < 2 * TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("gate", [None, gates_of(5)])
def test_the_residual_may_be_the_output_itself(gate: Tensor | None) -> None:
    weight, x, stream = plain_experts(6, 16, 12), Act(randn(5, 12, seed=1)), randn(5, 12, seed=7)
    routing = routing_of(randn(5, 6, seed=5), 2)
    expected = run(x, weight, routing, residual=stream.clone(), residual_gate=gate)
    _, scratch = run_with_scratch(x, weight, routing)
    experts(x, weight, routing, stream, scratch, residual=stream, residual_gate=gate)
    assert stream.equal(expected)


def test_a_gate_is_of_the_residual_alone() -> None:
    weight, x, residual, gate = plain_experts(6, 16, 12), Act(randn(5, 12, seed=1)), randn(5, 12, seed=7), gates_of(5)
    routing = routing_of(randn(5, 6, seed=5), 2)
    out = run(x, weight, routing, residual=residual, residual_gate=gate)
    assert relative_error(out, run(x, weight, routing).double() + gated64(residual, gate)) < 1e-6


def test_refuses_what_does_not_fit() -> None:
    weight, x = plain_experts(4, 8, 8), Act(randn(3, 8))
    routing = routing_of(randn(3, 4), 2)
    _, scratch = run_with_scratch(x, weight, routing)
    for bad_x, bad_routing, out, match in [
        (quantized(randn(3, 8)), routing, randn(3, 8), "ask for float"),
        (Act(randn(3, 6)), routing, randn(3, 8), r"x has shape \[3, 6\]"),
        (x, empty_routing(3, 5, 2), randn(3, 8), "routing.offsets has shape"),
        (x, empty_routing(3, 4, 3), randn(3, 8), "hidden has shape"),
        (x, routing, randn(3, 9), "out has shape"),
    ]:
        with pytest.raises(ValueError, match=match):
            experts(bad_x, weight, bad_routing, out, scratch)
    with pytest.raises(ValueError, match="the gate's limit is 0, expected more than 0"):
        run(x, weight, routing, gate=Gate(1.0, 0))
    with pytest.raises(ValueError, match=r"down_bias has shape \[4, 3\]"):
        run(x, replace(weight, down_bias=randn(4, 3)), routing)
    with pytest.raises(ValueError, match="no residual"):
        run(x, weight, routing, residual_gate=gates_of(3))
    with pytest.raises(ValueError, match=r"residual_gate has shape \[2, 1\]"):
        run(x, weight, routing, residual=randn(3, 8), residual_gate=gates_of(2))
    one_int8 = int8_experts(4, 8, 8, ActFormat.INT8)
    with pytest.raises(ValueError, match="both projections are int8"):
        run(quantized(randn(3, 8)), ExpertsWeight(one_int8.gate_up, one_int8.down, one_int8.gate_up_scale), routing)


def test_plain_weights_are_no_native_ones() -> None:
    weight, x, routing = plain_experts(4, 8, 8), Act(randn(3, 8)), routing_of(randn(3, 4), 2)
    dispatch.configure(dispatch.Mode.STRICT, 1)
    with pytest.raises(FallbackError):
        run(x, weight, routing)
