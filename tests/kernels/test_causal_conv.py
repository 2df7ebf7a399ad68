"""``causal_conv`` in every form against a float64 formula."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_next.modeling_qwen3_next import causal_conv1d_fn

from app.kernels import dispatch
from app.kernels.causal_conv import causal_conv
from app.kernels.dispatch import FallbackError, Mode
from app.kernels.native.program import Program
from app.kernels.types import LayerState
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
from tests.kernels.util import TOLERANCE, poisoned, randn, relative_error

TAPS = 4


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with running(request.param):
        yield request.param


def conv64(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[n, C] of a whole sequence, token by token."""
    taps = weight.shape[0]
    padded = torch.cat((torch.zeros(taps - 1, inputs.shape[1]), inputs)).double()
    out = torch.stack([(padded[t : t + taps] * weight.double()).sum(0) for t in range(len(inputs))])
    if bias is not None:
        out += bias.double()
    return out / (1 + (-out).exp())


class Case:
    """Whole sequences, of which the step's rows are the ends; pages hold the states that rows begin with."""

    def __init__(
        self, rows: Rows, channels: int, dtype: torch.dtype, taps: int = TAPS, bias: Tensor | None = None
    ) -> None:
        self.rows, self.bias = rows, bias
        self.sequences = [randn(s + n, channels, seed=row, dtype=dtype) for row, (s, n) in enumerate(rows.spans)]
        self.weight = randn(taps, channels, seed=99)
        wide = poisoned(rows.num_tokens, channels + 5, dtype=dtype)
        self.x = wide[:, :channels]
        pages = poisoned(rows.num_blocks, taps - 1, channels, dtype=dtype)
        for row, ((start, _), sequence) in enumerate(zip(rows.spans, self.sequences, strict=True)):
            self.x[rows.tokens(row)] = sequence[start:]
            source = rows.source(row)
            if source is not None:
                pages[source] = self.before(sequence, start)
        self.before_pages = pages
        self.state = LayerState(pages.clone(), torch.empty(0), BLOCK)
        self.out = poisoned(rows.num_tokens, channels, dtype=dtype)

    def before(self, sequence: Tensor, position: int) -> Tensor:
        taps = self.weight.shape[0]
        padded = torch.cat((sequence.new_zeros(taps - 1, sequence.shape[1]), sequence))
        return padded[position : position + taps - 1]

    def run(self) -> None:
        causal_conv(self.x, self.weight, self.state, self.rows.meta, self.out, bias_C=self.bias)

    def check(self) -> None:
        states = [
            {position: self.before(sequence, position).double() for position in self.rows.kept(row).values()}
            for row, sequence in enumerate(self.sequences)
        ]
        check_pages(self.state.conv, self.before_pages, self.rows, states, 0.0)
        for row, ((start, count), sequence) in enumerate(zip(self.rows.spans, self.sequences, strict=True)):
            if count:
                expected = conv64(sequence, self.weight, self.bias)[start:]
                assert relative_error(self.out[self.rows.tokens(row)], expected) < TOLERANCE[self.out.dtype], row


INTERPRETED = [
    (torch.float32, 33, SHORT_SPANS),
    (torch.bfloat16, 300, SHORT_SPANS),
    (torch.bfloat16, 33, DECODES),
    (torch.float32, 300, DECODES),
]
"""300 channels are two programs', the second not full."""


@cases(
    "dtype, channels, spans",
    itertools.product([torch.float32, torch.bfloat16], [8, 33, 600], [SPANS, DECODES]),
    INTERPRETED,
)
def test_against_fp64(implementation: str, dtype: torch.dtype, channels: int, spans: list[tuple[int, int]]) -> None:
    case = Case(make_rows(spans), channels, dtype)
    case.run()
    case.check()


@pytest.mark.parametrize("taps", [2, 3, 7])
def test_other_numbers_of_taps(implementation: str, taps: int) -> None:
    case = Case(make_rows([(0, 1), (15, 2), (30, 7)]), 33, torch.float32, taps)
    case.run()
    case.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spans", [[(0, 1), (15, 2), (30, 7)], DECODES], ids=["mixed", "decodes"])
def test_a_bias_is_added_ahead_of_the_silu(
    implementation: str, dtype: torch.dtype, spans: list[tuple[int, int]]
) -> None:
    case = Case(make_rows(spans), 33, dtype, bias=randn(33, seed=98))
    case.run()
    case.check()


def test_a_boundary_without_a_block_is_left_out(implementation: str) -> None:
    case = Case(make_rows([(3, 15), (30, 5)], checkpoints=False), 33, torch.float32)
    case.run()
    case.check()


def test_a_token_is_the_same_however_its_row_is_cut(implementation: str) -> None:
    length = 20 if implementation == "triton" else 40
    whole = Case(make_rows([(0, length)]), 33, torch.float32)
    whole.run()
    for sizes in ([1] * length, [3, 14, 1, length - 18]):
        state = LayerState(poisoned(8, TAPS - 1, 33), torch.empty(0), BLOCK)
        start = 0
        for size in sizes:
            rows = make_rows([(start, size)])
            rows.meta.block_tables[0] = torch.arange(rows.meta.block_tables.shape[1])
            out = poisoned(size, 33)
            causal_conv(whole.x[start : start + size], whole.weight, state, rows.meta, out)
            if implementation == "reference":  # plain torch's exp has other bits at the end of a tensor
                assert torch.allclose(out, whole.out[start : start + size], rtol=1e-6, atol=1e-7)
            else:
                assert torch.equal(out, whole.out[start : start + size])
            start += size
        assert torch.equal(state.conv[(length - 1) // BLOCK], whole.sequences[0][-3:])


def test_agrees_with_transformers(implementation: str) -> None:
    case = Case(make_rows([(0, 21)]), 48, torch.float32)
    case.run()
    x = case.sequences[0].t()[None]
    expected = causal_conv1d_fn(x, case.weight.t().contiguous(), None, activation="silu")
    assert relative_error(case.out, expected[0].t()) < 1e-6


@pytest.mark.skipif(not native_isas(), reason="no native kernels here")
def test_a_recording_serves_steps_of_any_size() -> None:
    with running(native_isas()[0]):
        case = Case(make_rows([(0, 5), (15, 2), (30, 30)]), 33, torch.float32)
        with dispatch.recording() as calls:
            case.run()
        assert case.out.isnan().all()
        program = Program(dispatch.pool(), calls, dispatch.isa())
        program.run(tokens=7, rows=2)
        assert case.out[7:].isnan().all()
        program.run(tokens=37, rows=3)  # the first rows once more: their state is left within the block it was in
        assert case.out.isfinite().all()


def test_refuses_arguments_that_do_not_fit() -> None:
    case = Case(make_rows([(0, 2)]), 8, torch.float32)
    x, weight, state, meta, out = case.x, case.weight, case.state, case.rows.meta, case.out
    with pytest.raises(ValueError, match="rows of x are not contiguous"):
        causal_conv(randn(8, 2).t(), weight, state, meta, out)
    with pytest.raises(ValueError, match="expected at least 2"):
        causal_conv(x, weight[:1], state, meta, out)
    with pytest.raises(ValueError, match=r"weight has shape \[4, 7\]"):
        causal_conv(x, weight[:, :7], state, meta, out)
    with pytest.raises(ValueError, match=r"bias has shape \[7\]"):
        causal_conv(x, weight, state, meta, out, bias_C=weight[0, :7])
    with pytest.raises(ValueError, match=r"state.conv is torch.bfloat16"):
        causal_conv(x, weight, LayerState(state.conv.bfloat16(), torch.empty(0), BLOCK), meta, out)
    with pytest.raises(ValueError, match="too narrow"):
        causal_conv(x, weight, LayerState(state.conv, torch.empty(0), 0), meta, out)


@pytest.mark.skipif(not native_isas(), reason="no native kernels here")
def test_more_taps_than_the_native_kernel_takes_are_no_silent_fallback() -> None:
    with running("reference"):
        case = Case(make_rows([(0, 2)]), 8, torch.float32, 17)
    with running(native_isas()[0]), pytest.raises(FallbackError, match="17 taps"):
        case.run()
    before = dispatch._state.mode, dispatch._state.threads, dispatch._state.isa
    dispatch.configure(Mode.AUTO, 1)
    case.run()
    dispatch.configure(*before)
    case.check()
