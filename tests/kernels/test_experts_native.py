"""The native ``experts`` over packed weights, on every instruction set of this machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import Tensor

from app.kernels import dispatch
from app.kernels.experts import GELU_TANH, SILU, Gate, experts
from app.kernels.int8 import quantize_groups, quantize_tokens
from app.kernels.linear.pack import unpack
from app.kernels.native.library import ISAS, NativeError, best_isa
from app.kernels.native.program import Program
from app.kernels.types import Act, ExpertsWeight, PackedExperts, Routing
from app.quant.experts import NO_BIAS, ExpertsBias
from app.quant.formats.packed import NewPackedExperts
from tests.kernels.mixture import (
    CLAMPED,
    experts64,
    gated64,
    gates_of,
    hidden64,
    routing_of,
    run,
    run_with_scratch,
    small,
)
from tests.kernels.util import quantized, randn, relative_error


def _isas() -> list[str]:
    try:
        return list(ISAS[ISAS.index(best_isa()) :])
    except NativeError:
        return []


pytestmark = pytest.mark.skipif(not _isas(), reason="no native kernels here")
DTYPES = [torch.int8, torch.bfloat16]


@pytest.fixture(params=_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    dispatch.configure(dispatch.Mode.STRICT, 2, isa=request.param)
    yield request.param
    dispatch.configure(dispatch.Mode.AUTO, 1)


def make_experts(count: int, inner: int, width: int, dtype: torch.dtype, bias: ExpertsBias = NO_BIAS) -> PackedExperts:
    new = NewPackedExperts(count, inner, width, dtype=dtype, bias=bias)
    gate_up_bias, down_bias = randn(count, 2 * inner, seed=11), randn(count, width, seed=12)
    gate_up, down = small(count, 2 * inner, width, seed=2), small(count, width, inner, seed=3)
    for i in range(count):
        new.gate_up(i, 0, 2 * inner).copy_(gate_up[i])
        new.down(i).copy_(down[i])
        if (of_gate_up := new.gate_up_bias(i, 0, 2 * inner)) is not None:
            of_gate_up.copy_(gate_up_bias[i])
        if (of_down := new.down_bias(i)) is not None:
            of_down.copy_(down_bias[i])
    return new.weight


def plain(weight: PackedExperts) -> ExpertsWeight:
    gate_ups, downs = [unpack(one) for one in weight.gate_up], [unpack(one) for one in weight.down]

    def stack(parts: Iterable[Tensor | None]) -> Tensor | None:
        found = [part for part in parts if part is not None]
        return torch.stack(found) if found else None

    return ExpertsWeight(
        torch.stack([one.values for one in gate_ups]),
        torch.stack([one.values for one in downs]),
        stack(one.scale for one in gate_ups),
        stack(one.scale for one in downs),
        gate_up_bias=stack(one.bias for one in gate_ups),
        down_bias=stack(one.bias for one in downs),
    )


def make_x(tokens: int, width: int, dtype: torch.dtype) -> Act:
    x = randn(tokens, width, seed=1)
    return quantized(x) if dtype is torch.int8 else Act(x.to(dtype))


def kept64(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """[T, k, I] in float64 as the down projections get it."""
    flat = hidden.view(-1, hidden.shape[-1]).float()
    if dtype is torch.bfloat16:
        return flat.bfloat16().double().view_as(hidden)
    values, scale = quantize_groups(flat)
    return (values.double() * scale.double().repeat_interleave(64, dim=1)[:, : flat.shape[1]]).view_as(hidden)


def check(x: Act, weight: PackedExperts, routing: Routing, dtype: torch.dtype, gate: Gate = SILU) -> None:
    tokens = x.values.shape[0]
    residual, residual_gate = randn(tokens, weight.width, seed=6), gates_of(tokens)
    out = run(x, weight, routing, residual=residual, gate=gate)
    assert not out.isnan().any()
    gated = run(x, weight, routing, residual=residual, residual_gate=residual_gate, gate=gate)
    if tokens:
        assert relative_error(gated.double() - out, gated64(residual, residual_gate) - residual.double()) < 1e-4
    if tokens:
        unpacked = plain(weight)
        kept = kept64(hidden64(x, unpacked, routing, gate), dtype)
        expected = experts64(kept, unpacked, routing) + residual.double()
        # A value that lies half between two steps may go either way: some 1e-4 of them, by a step.
        assert relative_error(out, expected) < (1e-3 if dtype is torch.bfloat16 else 3e-4)


@pytest.mark.parametrize("dtype", DTYPES)
# (X, k, I, D)
@pytest.mark.parametrize("shape", [(8, 2, 100, 64), (5, 5, 36, 132), (60, 4, 128, 36), (3, 1, 4, 4), (2, 2, 300, 4100)])
def test_every_number_of_tokens(isa: str, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    count, chosen, inner, width = shape
    weight = make_experts(count, inner, width, dtype)
    for tokens in (0, 1, 2, 7, 33) if width < 4000 else (1, 30):
        check(make_x(tokens, width, dtype), weight, routing_of(randn(tokens, count, seed=5), chosen), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate", [SILU, GELU_TANH, CLAMPED])
@pytest.mark.parametrize("bias", [ExpertsBias(gate_up=True, down=True), ExpertsBias(gate_up=True), NO_BIAS])
def test_biases_and_the_clamped_gate(isa: str, dtype: torch.dtype, gate: Gate, bias: ExpertsBias) -> None:
    for count, chosen, inner, width in [(8, 2, 100, 64), (5, 5, 36, 132)]:
        weight = make_experts(count, inner, width, dtype, bias)
        for tokens in (1, 7, 33):
            routing = routing_of(randn(tokens, count, seed=5), chosen)
            check(make_x(tokens, width, dtype), weight, routing, dtype, gate)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_is_not_clamped_away(isa: str, dtype: torch.dtype) -> None:
    weight, x = make_experts(4, 64, 64, dtype, ExpertsBias(gate_up=True, down=True)), randn(7, 64)
    x[3, 5] = float("nan")
    act = quantized(x) if dtype is torch.int8 else Act(x.to(dtype))
    out = run(act, weight, routing_of(randn(7, 4), 2), gate=CLAMPED)
    assert out.isnan().any(dim=-1).tolist() == [row == 3 for row in range(7)]
    assert out[3].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_tokens_to_one_expert_and_none_to_most(isa: str, dtype: torch.dtype) -> None:
    weight = make_experts(9, 68, 100, dtype)
    logits = torch.zeros(250, 9)
    logits[:, 4] = 5.0
    logits[100:, 7] = 1.0
    for expert in (0, 1, 2, 3, 5, 6, 8):
        # What is not read may hold anything.
        for one in (weight.gate_up[expert], weight.down[expert]):
            if one.scale is None:
                one.data.fill_(float("nan"))
            elif expert:
                one.scale.fill_(float("nan"))
    tokens = make_x(250, 100, dtype)
    out = run(tokens, weight, routing_of(logits, 1))
    check_rows = [0, 1, 99, 100, 191, 192, 249]
    part = Act(tokens.values[check_rows], None if tokens.scale is None else tokens.scale[check_rows])
    check(part, weight, routing_of(logits[check_rows], 1), dtype)
    assert run(part, weight, routing_of(logits[check_rows], 1)).equal(out[check_rows])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_does_not_depend_on_the_others_nor_on_threads(isa: str, dtype: torch.dtype) -> None:
    weight, tokens = make_experts(6, 132, 68, dtype), 2100  # more than one block of tokens
    x, logits = make_x(tokens, 68, dtype), randn(tokens, 6, seed=5)
    whole = run(x, weight, routing_of(logits, 3))
    for threads in (1, 3):
        dispatch.configure(dispatch.Mode.STRICT, threads, isa=isa)
        assert run(x, weight, routing_of(logits, 3)).equal(whole)
    for start, stop in [(0, 1), (5, 6), (2099, 2100), (3, 5), (7, 12), (1040, 1060), (100, 700)]:
        part = Act(x.values[start:stop].clone(), None if x.scale is None else x.scale[start:stop].clone())
        assert run(part, weight, routing_of(logits[start:stop].clone(), 3)).equal(whole[start:stop])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_recording_reads_its_size_and_counts_from_the_step(isa: str, dtype: torch.dtype) -> None:
    weight, x = make_experts(6, 68, 36, dtype), make_x(40, 36, dtype)
    logits = randn(40, 6, seed=5)
    routing = routing_of(logits, 2)
    out, scratch = run_with_scratch(x, weight, routing)
    with dispatch.recording() as calls:
        experts(x, weight, routing, out, scratch)
    program = Program(dispatch.pool(), calls, isa)
    for tokens in (40, 1, 0, 9):
        now = routing_of(logits[:tokens].clone(), 2)
        routing.experts[:tokens], routing.weights[:tokens] = now.experts, now.weights
        routing.slots[: 2 * tokens], routing.offsets[:] = now.slots, now.offsets
        out.fill_(float("nan"))
        program.run(tokens=tokens)
        part = Act(x.values[:tokens].clone(), None if x.scale is None else x.scale[:tokens].clone())
        assert out[:tokens].equal(run(part, weight, now))
        assert out[tokens:].isnan().all()


@pytest.mark.parametrize("stream_dtype", [torch.float32, torch.bfloat16])
def test_the_residual_may_be_the_output_itself(isa: str, stream_dtype: torch.dtype) -> None:
    weight, x, routing = make_experts(4, 64, 68, torch.int8), make_x(9, 68, torch.int8), routing_of(randn(9, 4), 2)
    stream = randn(9, 68, seed=7, dtype=stream_dtype)
    expected = run(x, weight, routing, torch.float32, residual=stream.clone()).to(stream_dtype)
    _, scratch = run_with_scratch(x, weight, routing)
    experts(x, weight, routing, stream, scratch, residual=stream)
    assert stream.equal(expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_stays_in_its_row(isa: str, dtype: torch.dtype) -> None:
    weight, x = make_experts(4, 64, 64, dtype), randn(7, 64)
    x[3, 5] = float("nan")
    act = quantized(x) if dtype is torch.int8 else Act(x.to(dtype))
    out = run(act, weight, routing_of(randn(7, 4), 2))
    assert out.isnan().any(dim=-1).tolist() == [row == 3 for row in range(7)]
    assert out[3].isnan().all()


def test_experts_lie_one_behind_the_other() -> None:
    weight = NewPackedExperts(3, 20, 8, dtype=torch.int8).weight
    for parts in (weight.gate_up, weight.down):
        first = parts[0].data
        assert [one.data.data_ptr() - first.data_ptr() for one in parts] == [i * first.nbytes for i in range(3)]
        assert all(one.scale is not None and one.scale.is_contiguous() for one in parts)


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="K is no multiple of 4"):
        NewPackedExperts(2, 6, 8, dtype=torch.int8)
    weight, routing = make_experts(2, 132, 132, torch.int8), routing_of(randn(3, 2), 1)
    with pytest.raises(ValueError, match="quantise by groups"):
        run(Act(*quantize_tokens(randn(3, 132))), weight, routing)
    with pytest.raises(ValueError, match="ask for int8"):
        run(Act(randn(3, 132)), weight, routing)
    with pytest.raises(ValueError, match=r"x is torch.float32, expected torch.bfloat16"):
        run(Act(randn(3, 64)), make_experts(2, 64, 64, torch.bfloat16), routing)
    with pytest.raises(ValueError, match=r"out is torch.float16"):
        run(make_x(3, 132, torch.int8), weight, routing, torch.float16)
