"""``gated_conv`` in every form against a float64 formula."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import Lfm2Config
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

from app.kernels import dispatch
from app.kernels.dispatch import FallbackError, Mode
from app.kernels.gated_conv import gated_conv
from app.kernels.native.program import Program
from app.kernels.types import Act, LayerState
from tests.kernels.delta import (
    BLOCK,
    DECODES,
    IMPLEMENTATIONS,
    SHORT_SPANS,
    SPANS,
    Rows,
    cases,
    check_pages,
    make_rows,
    native_isas,
    running,
)
from tests.kernels.util import TOLERANCE, dequantize, poisoned, poisoned_act, randn, relative_error, steps

TAPS = 3


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with running(request.param):
        yield request.param


class Case:
    """Whole sequences, of which the step's rows are the ends; pages hold the states that rows begin with."""

    def __init__(
        self, rows: Rows, channels: int, dtype: torch.dtype = torch.float32, *, taps: int = TAPS, bias: bool = False
    ) -> None:
        self.rows = rows
        sequences = [randn(s + n, 3 * channels, seed=row, dtype=dtype) for row, (s, n) in enumerate(rows.spans)]
        self.out_gates = [sequence.chunk(3, dim=1)[1] for sequence in sequences]
        self.inputs = [sequence.chunk(3, dim=1)[0] * sequence.chunk(3, dim=1)[2] for sequence in sequences]
        self.weight = randn(taps, channels, seed=99)
        self.bias = randn(channels, seed=98) if bias else None
        self.projected = poisoned(rows.num_tokens, 3 * channels, dtype=dtype)
        pages = poisoned(rows.num_blocks, taps - 1, channels, dtype=dtype)
        for row, ((start, _), sequence) in enumerate(zip(rows.spans, sequences, strict=True)):
            self.projected[rows.tokens(row)] = sequence[start:]
            source = rows.source(row)
            if source is not None:
                pages[source] = self.before(row, start)
        self.before_pages = pages
        self.state = LayerState(pages.clone(), torch.empty(0), BLOCK)
        self.out = poisoned_act(rows.num_tokens, channels, dtype)

    def before(self, row: int, position: int) -> Tensor:
        taps, inputs = self.weight.shape[0], self.inputs[row]
        padded = torch.cat((inputs.new_zeros(taps - 1, inputs.shape[1]), inputs))
        return padded[position : position + taps - 1]

    def run(self, out: Act | None = None) -> None:
        gated_conv(self.projected, self.weight, self.state, self.rows.meta, out or self.out, bias_C=self.bias)

    def conv64(self, row: int) -> Tensor:
        """[n, C] of a whole sequence, token by token."""
        taps, inputs = self.weight.shape[0], self.inputs[row].double()
        padded = torch.cat((inputs.new_zeros(taps - 1, inputs.shape[1]), inputs))
        conv = torch.stack([(padded[t : t + taps] * self.weight.double()).sum(0) for t in range(len(inputs))])
        return self.out_gates[row].double() * (conv if self.bias is None else conv + self.bias.double())

    def check(self) -> None:
        states = [
            {position: self.before(row, position).double() for position in self.rows.kept(row).values()}
            for row in range(len(self.inputs))
        ]
        check_pages(self.state.conv, self.before_pages, self.rows, states, 0.0)
        for row, (start, count) in enumerate(self.rows.spans):
            if count:
                expected, actual = self.conv64(row)[start:], self.out.values[self.rows.tokens(row)]
                assert relative_error(actual, expected) < TOLERANCE[actual.dtype], row


INTERPRETED = [
    (torch.float32, 33, SHORT_SPANS),
    (torch.bfloat16, 300, SHORT_SPANS),
    (torch.bfloat16, 33, DECODES),
    (torch.float32, 300, DECODES),
]
"""300 channels are two programs', the second not full; 33 have a bias."""


@cases(
    "dtype, channels, spans",
    itertools.product([torch.float32, torch.bfloat16], [8, 33, 600], [SPANS, DECODES]),
    INTERPRETED,
)
def test_against_fp64(implementation: str, dtype: torch.dtype, channels: int, spans: list[tuple[int, int]]) -> None:
    case = Case(make_rows(spans), channels, dtype, bias=channels == 33)
    case.run()
    case.check()


@pytest.mark.parametrize("taps", [2, 4, 7])
def test_other_numbers_of_taps(implementation: str, taps: int) -> None:
    case = Case(make_rows([(0, 1), (15, 2), (30, 7)]), 33, taps=taps)
    case.run()
    case.check()


def test_a_boundary_without_a_block_is_left_out(implementation: str) -> None:
    case = Case(make_rows([(3, 15), (30, 5)], checkpoints=False), 33)
    case.run()
    case.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spans", [[(0, 1), (5, 3), (15, 2)], DECODES], ids=["mixed", "decodes"])
def test_int8_is_the_rounded_result(implementation: str, dtype: torch.dtype, spans: list[tuple[int, int]]) -> None:
    rows, channels = make_rows(spans), 600
    case = Case(rows, channels, dtype)
    case.projected[0, channels : 2 * channels] = 0
    case.out_gates[0][0] = 0
    scale = (rows.num_tokens, 1 if implementation == "triton" else 10)
    out = Act(poisoned(rows.num_tokens, channels, dtype=torch.int8), poisoned(*scale))
    case.run(out)
    assert out.scale is not None
    assert not out.scale[0].any()
    expected = torch.cat([case.conv64(row)[start:] for row, (start, _) in enumerate(spans)])
    assert ((dequantize(out) - expected).abs() <= 0.5001 * steps(out) + 1e-6).all()


def test_a_token_is_the_same_however_its_row_is_cut(implementation: str) -> None:
    length = 20 if implementation == "triton" else 40
    whole = Case(make_rows([(0, length)]), 33, torch.bfloat16)
    whole.run()
    for sizes in ([1] * length, [3, 14, 1, length - 18]):
        state = LayerState(poisoned(8, TAPS - 1, 33, dtype=torch.bfloat16), torch.empty(0), BLOCK)
        start = 0
        for size in sizes:
            rows = make_rows([(start, size)])
            rows.meta.block_tables[0] = torch.arange(rows.meta.block_tables.shape[1])
            out = poisoned_act(size, 33, torch.bfloat16)
            gated_conv(whole.projected[start : start + size], whole.weight, state, rows.meta, out)
            assert torch.equal(out.values, whole.out.values[start : start + size])
            start += size
        assert torch.equal(state.conv[(length - 1) // BLOCK], whole.inputs[0][-2:])


def test_agrees_with_transformers(implementation: str) -> None:
    config = Lfm2Config(hidden_size=48, conv_L_cache=TAPS, conv_bias=True, num_hidden_layers=1, layer_types=["conv"])
    theirs = Lfm2ShortConv(config, 0)
    torch.nn.init.eye_(theirs.out_proj.weight)
    torch.nn.init.zeros_(theirs.out_proj.bias)
    x = randn(1, 21, 48)
    case = Case(make_rows([(0, 21)]), 48)
    with torch.no_grad():
        case.projected.copy_(theirs.in_proj(x)[0])
        expected = theirs(x)[0]
    case.weight.copy_(theirs.conv.weight.detach().squeeze(1).t())
    assert theirs.conv.bias is not None
    case.bias = theirs.conv.bias.detach()
    case.run()
    assert relative_error(case.out.values, expected) < 1e-6


@pytest.mark.skipif(not native_isas(), reason="no native kernels here")
def test_a_recording_serves_steps_of_any_size() -> None:
    with running(native_isas()[0]):
        case = Case(make_rows([(0, 5), (15, 2), (30, 30)]), 33)
        with dispatch.recording() as calls:
            case.run()
        out = case.out.values
        assert out.isnan().all()
        program = Program(dispatch.pool(), calls, dispatch.isa())
        program.run(tokens=7, rows=2)
        assert out[7:].isnan().all()
        program.run(tokens=37, rows=3)  # the first rows once more: their state is left within the block it was in
        assert out.isfinite().all()


def test_refuses_arguments_that_do_not_fit() -> None:
    case = Case(make_rows([(0, 2)]), 8)
    projected, weight, state, meta, out = case.projected, case.weight, case.state, case.rows.meta, case.out
    with pytest.raises(ValueError, match=r"projected has shape \[2, 23\]"):
        gated_conv(projected[:, :23], weight, state, meta, out)
    with pytest.raises(ValueError, match="expected at least 2"):
        gated_conv(projected, weight[:1], state, meta, out)
    with pytest.raises(ValueError, match=r"bias has shape \[7\]"):
        gated_conv(projected, weight, state, meta, out, bias_C=torch.zeros(7))
    with pytest.raises(ValueError, match=r"state.conv is torch.bfloat16"):
        gated_conv(projected, weight, LayerState(state.conv.bfloat16(), torch.empty(0), BLOCK), meta, out)
    with pytest.raises(ValueError, match="too narrow"):
        gated_conv(projected, weight, LayerState(state.conv, torch.empty(0), 0), meta, out)
    with running("triton"), pytest.raises(ValueError, match="by tokens, not by groups"):
        gated_conv(projected.repeat(1, 9), weight.repeat(1, 9), state_of(72), meta, poisoned_act(2, 72, torch.int8))


def state_of(channels: int) -> LayerState:
    return LayerState(torch.zeros(4, TAPS - 1, channels), torch.empty(0), BLOCK)


@pytest.mark.skipif(not native_isas(), reason="no native kernels here")
def test_more_taps_than_the_native_kernel_takes_are_no_silent_fallback() -> None:
    with running("reference"):
        case = Case(make_rows([(0, 2)]), 8, taps=17)
    with running(native_isas()[0]), pytest.raises(FallbackError, match="17 taps"):
        case.run()
    before = dispatch._state.mode, dispatch._state.threads, dispatch._state.isa
    dispatch.configure(Mode.AUTO, 1)
    case.run()
    dispatch.configure(*before)
    case.check()
