"""``experts`` in Triton: grouped products and those of single slots against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from app.kernels.experts import GELU_TANH, SILU, Gate
from app.kernels.int8 import quantize_tokens
from app.kernels.types import Act, ActFormat, Routing
from tests.kernels.mixture import (
    CLAMPED,
    biased,
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

pytestmark = pytest.mark.usefixtures("interpreted")
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
# (T, X, k, I, D): few tokens, which are multiplied slot by slot, and more; widths that no tile divides.
SHAPES = [(1, 8, 2, 20, 36), (4, 3, 3, 9, 14), (5, 6, 2, 68, 100), (40, 5, 3, 30, 70)]


def int8_x(tokens: int, width: int) -> Act:
    return Act(*quantize_tokens(randn(tokens, width, seed=1)))


def routed(tokens: int, count: int, chosen: int) -> Routing:
    return routing_of(randn(tokens, count, seed=5), chosen)


def kept64(hidden: Act, chosen: int) -> torch.Tensor:
    """[T, k, I]: rows lie by slot."""
    values = dequantize(hidden)
    return values.view(-1, chosen, values.shape[1])


def with_shape(monkeypatch: pytest.MonkeyPatch, **shape: int) -> None:
    """From here on products have this launch shape."""
    whole: dict[str, Any] = {"BLOCK": 64, "num_warps": 4, "num_stages": 3, **shape}

    def launch_shape(op: str, **_dims: int) -> dict[str, Any]:
        wanted = {"BLOCK"} if op == "weighted_sum" else {"BLOCK_M", "BLOCK_N", "BLOCK_K"}
        return {name: value for name, value in whole.items() if name in wanted | {"num_warps", "num_stages"}}

    monkeypatch.setattr("app.kernels.experts.triton.launch_shape", launch_shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_w8a8(shape: tuple[int, int, int, int, int]) -> None:
    tokens, count, chosen, inner, width = shape
    weight, x = int8_experts(count, inner, width, ActFormat.INT8_TOKEN), int8_x(tokens, width)
    routing, residual = routed(tokens, count, chosen), randn(tokens, width, seed=6)
    out, scratch = run_with_scratch(x, weight, routing, residual=residual)
    kept = kept64(scratch.hidden, chosen)
    error = (kept - hidden64(x, weight, routing)).abs().view(-1, inner)
    assert (error <= 0.5001 * steps(scratch.hidden)).all()
    assert relative_error(out, experts64(kept, weight, routing) + residual.double()) <= TOLERANCE[torch.float32]


# Every shape and every dtype with both kinds of weights.
@pytest.mark.parametrize(
    ("shape", "int8", "dtype"),
    [(shape, bool(j), FLOATS[(i + j) % len(FLOATS)]) for i, shape in enumerate(SHAPES) for j in range(2)],
)
def test_floating_rows(shape: tuple[int, int, int, int, int], int8: bool, dtype: torch.dtype) -> None:
    tokens, count, chosen, inner, width = shape
    weight = plain_experts(count, inner, width, dtype)
    if int8:
        weight = int8_experts(count, inner, width, ActFormat.FLOAT)
    x, routing = Act(randn(tokens, width, seed=1, dtype=dtype)), routed(tokens, count, chosen)
    out, scratch = run_with_scratch(x, weight, routing, dtype)
    kept = kept64(scratch.hidden, chosen)
    assert relative_error(kept, hidden64(x, weight, routing)) <= TOLERANCE[dtype]
    assert relative_error(out, experts64(kept, weight, routing)) <= 2 * TOLERANCE[dtype]


BIASED = [(5, 3, 2, 20, 36), (3, 3, 2, 12, 16)]
"""Grouped, and slot by slot."""


@pytest.mark.parametrize(
    ("shape", "gate", "kind"),
    [
        (BIASED[(i + j) % 2], gate, kind)
        for i, gate in enumerate([SILU, GELU_TANH, CLAMPED])
        for j, kind in enumerate(["w8a8", "w8a16", "float"])
    ],
)
def test_biases_and_the_clamped_gate(shape: tuple[int, int, int, int, int], gate: Gate, kind: str) -> None:
    tokens, count, chosen, inner, width = shape
    x = int8_x(tokens, width) if kind == "w8a8" else Act(randn(tokens, width, seed=1))
    weight = plain_experts(count, inner, width)
    if kind != "float":
        weight = int8_experts(count, inner, width, ActFormat.INT8_TOKEN if kind == "w8a8" else ActFormat.FLOAT)
    weight, routing = biased(weight), routed(tokens, count, chosen)
    out, scratch = run_with_scratch(x, weight, routing, gate=gate)
    kept = kept64(scratch.hidden, chosen)
    if kind != "w8a8":
        assert relative_error(kept, hidden64(x, weight, routing, gate)) <= TOLERANCE[torch.float32]
    assert relative_error(out, experts64(kept, weight, routing)) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("tokens", [2, 7])
def test_a_nan_is_not_clamped_away(tokens: int) -> None:
    weight, x = biased(plain_experts(4, 24, 20)), randn(tokens, 20)
    x[1, 3] = float("nan")
    out = run(Act(x), weight, routed(tokens, 4, 2), gate=CLAMPED)
    assert out.isnan().all(dim=-1).tolist() == [row == 1 for row in range(tokens)]
    assert out.isnan().any(dim=-1).tolist() == [row == 1 for row in range(tokens)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("tokens", [3, 17])
def test_a_residual_may_have_a_gate(dtype: torch.dtype, tokens: int) -> None:
    weight, x = plain_experts(5, 9, 14, dtype), Act(randn(tokens, 14, seed=1, dtype=dtype))
    routing, residual, gate = routed(tokens, 5, 2), randn(tokens, 14, seed=6, dtype=dtype), gates_of(tokens)
    out, scratch = run_with_scratch(x, weight, routing, dtype, residual, gate)
    expected = experts64(kept64(scratch.hidden, 2), weight, routing) + gated64(residual, gate)
    assert relative_error(out, expected) <= 2 * TOLERANCE[dtype]


def test_all_tokens_to_one_expert_and_none_to_the_others() -> None:
    weight, x = int8_experts(5, 20, 36, ActFormat.INT8_TOKEN), int8_x(37, 36)
    logits = torch.zeros(37, 5)
    logits[:, 3] = 4.0
    routing = routing_of(logits, 1)
    for expert in (0, 1, 2, 4):
        assert weight.gate_up_scale is not None
        assert weight.down_scale is not None
        weight.gate_up_scale[expert], weight.down_scale[expert] = float("nan"), float("nan")
    out, scratch = run_with_scratch(x, weight, routing)
    expected = experts64(kept64(scratch.hidden, 1), weight, routing)
    assert relative_error(out, expected) <= TOLERANCE[torch.float32]


def test_a_tokens_bits_do_not_depend_on_how_many_there_are() -> None:
    weight, x = int8_experts(4, 12, 20, ActFormat.INT8_TOKEN), int8_x(40, 20)
    logits = randn(40, 4, seed=5)
    whole = run(x, weight, routing_of(logits, 2), torch.bfloat16)
    assert x.scale is not None
    for tokens in (1, 4, 5, 17):
        part = Act(x.values[9 : 9 + tokens], x.scale[9 : 9 + tokens])
        out = run(part, weight, routing_of(logits[9 : 9 + tokens].clone(), 2), torch.bfloat16)
        assert out.equal(whole[9 : 9 + tokens]), tokens


def test_a_tokens_bits_do_not_depend_on_the_launch_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = int8_experts(3, 40, 70, ActFormat.INT8_TOKEN), int8_x(33, 70)
    routing, outs = routed(33, 3, 2), []
    for block_m, block_n, block_k in [(16, 32, 64), (32, 16, 128), (64, 64, 32)]:
        with_shape(monkeypatch, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k)
        outs.append(run(x, weight, routing))
    assert all(out.equal(outs[0]) for out in outs)


@pytest.mark.parametrize("tokens", [2, 7])
def test_a_nan_stays_in_its_row(tokens: int) -> None:
    weight, x = plain_experts(4, 24, 20), randn(tokens, 20)
    x[1, 3] = float("nan")
    out = run(Act(x), weight, routed(tokens, 4, 2))
    assert out.isnan().any(dim=-1).tolist() == [row == 1 for row in range(tokens)]


def test_no_tokens_are_no_launch() -> None:
    assert run(int8_x(0, 64), int8_experts(3, 8, 64, ActFormat.INT8_TOKEN), routed(0, 3, 1)).shape == (0, 64)


def test_refuses_scales_by_groups() -> None:
    with pytest.raises(ValueError, match="by tokens"):
        run(quantized(randn(2, 128)), int8_experts(3, 8, 128, ActFormat.INT8_TOKEN), routed(2, 3, 1))
