"""``selective_scan`` in every form against the recurrence in float64, and against transformers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers.models.granitemoehybrid.modeling_granitemoehybrid import mamba2_chunk_scan

from app.kernels import dispatch
from app.kernels.dispatch import FallbackError
from app.kernels.native.program import Program
from app.kernels.selective_scan import selective_scan
from app.kernels.types import AttentionMetadata, LayerState
from tests.kernels.delta import (
    BLOCK,
    DECODES,
    IMPLEMENTATIONS,
    SPANS,
    Rows,
    cases,
    check_pages,
    make_rows,
    native_isas,
    running,
)
from tests.kernels.util import poisoned, randn, relative_error

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 5e-3}
Shape = tuple[int, int, int, int]
"""Groups, heads, and the two widths of a head's state."""
SHAPES: list[Shape] = [(1, 1, 16, 16), (2, 4, 21, 48), (1, 3, 64, 80), (1, 2, 256, 64)]
FEW_HEADS: list[Shape] = [(1, 1, 16, 16), (2, 4, 21, 48), (1, 1, 64, 80), (1, 1, 256, 64)]
SMALL: Shape = (1, 2, 19, 32)
LIMIT = (0.2, 1.1)
"""Met on both sides by some tokens."""


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with running(request.param):
        yield request.param


class Heads:
    """What is learned of each head."""

    def __init__(self, heads: int) -> None:
        self.a_log, self.dt_bias, self.d = randn(heads, seed=77), randn(heads, seed=78), randn(heads, seed=79)


class Sequence:
    """A whole sequence: inputs, and by the recurrence in float64 its outputs and the state behind every token."""

    def __init__(
        self, length: int, shape: Shape, of: Heads, limit: tuple[float, float], dtype: torch.dtype, seed: int
    ) -> None:
        groups, heads, k_dim, v_dim = shape
        self.xbc = randn(length, heads * v_dim + 2 * groups * k_dim, seed=seed, dtype=dtype)
        self.dt = randn(length, heads, seed=seed + 1, dtype=dtype)
        self.out = torch.empty(length, heads * v_dim, dtype=torch.float64)
        self.states = [torch.zeros(heads, k_dim, v_dim, dtype=torch.float64)]
        x, b, c = self.xbc.double().split([heads * v_dim, groups * k_dim, groups * k_dim], dim=1)
        for t in range(length):
            state = torch.empty_like(self.states[0])
            for head in range(heads):
                near = slice(head // (heads // groups) * k_dim, (head // (heads // groups) + 1) * k_dim)
                own = slice(head * v_dim, (head + 1) * v_dim)
                step = math.log1p(math.exp(float(self.dt[t, head]) + float(of.dt_bias[head])))
                step = min(max(step, limit[0]), limit[1])
                s = self.states[-1][head] * math.exp(-math.exp(float(of.a_log[head])) * step)
                state[head] = s + torch.outer(b[t, near], step * x[t, own])
                self.out[t, own] = state[head].t() @ c[t, near] + float(of.d[head]) * x[t, own]
            self.states.append(state)


class Case:
    """Whole sequences, of which the step's rows are the ends; pages hold the states that rows begin with."""

    def __init__(
        self,
        rows: Rows,
        shape: Shape,
        dtype: torch.dtype = torch.float32,
        limit: tuple[float, float] = (0.0, math.inf),
    ) -> None:
        _, heads, k_dim, v_dim = shape
        self.rows, self.heads, self.limit = rows, Heads(heads), limit
        self.sequences = [
            Sequence(start + count if count else 0, shape, self.heads, limit, dtype, 10 * row)
            for row, (start, count) in enumerate(rows.spans)
        ]
        ends = [sequence.xbc[start:] for (start, _), sequence in zip(rows.spans, self.sequences, strict=True)]
        self.xbc = torch.cat(ends)
        # Columns of a wider tensor, as a layer has them.
        wide = poisoned(rows.num_tokens, heads + 3, dtype=dtype)
        self.dt = wide[:, :heads]
        pages = poisoned(rows.num_blocks, heads, k_dim, v_dim)
        for row, ((start, _), sequence) in enumerate(zip(rows.spans, self.sequences, strict=True)):
            self.dt[rows.tokens(row)] = sequence.dt[start:]
            source = rows.source(row)
            if source is not None and rows.spans[row][1]:
                pages[source] = sequence.states[start]
        self.before_pages = pages
        self.state = LayerState(torch.empty(0), pages.clone(), BLOCK)
        self.out = poisoned(rows.num_tokens, heads * v_dim, dtype=dtype)

    def run(self) -> None:
        self.scan(self.xbc, self.dt, self.state, self.rows.meta, self.out)

    def scan(self, xbc: Tensor, dt: Tensor, state: LayerState, meta: AttentionMetadata, out: Tensor) -> None:
        of = self.heads
        selective_scan(xbc, dt, of.a_log, of.dt_bias, of.d, state, meta, out, dt_limit=self.limit)

    def check(self) -> None:
        for row, ((start, count), sequence) in enumerate(zip(self.rows.spans, self.sequences, strict=True)):
            if count:
                error = relative_error(self.out[self.rows.tokens(row)], sequence.out[start:])
                assert error < TOLERANCE[self.out.dtype], row
        states = [dict(enumerate(sequence.states)) for sequence in self.sequences]
        check_pages(self.state.recurrent, self.before_pages, self.rows, states, 2e-6)


@cases(
    "dtype, spans",
    itertools.product([torch.float32, torch.bfloat16], [SPANS, DECODES[:-1]]),
    [
        (torch.float32, [*(span for span in SPANS if span[1] < 63), SPANS[-1]]),
        (torch.bfloat16, [(5, 3), (0, 0), (15, 1), (3, 35)]),
        (torch.bfloat16, DECODES[:-1]),
    ],
)
def test_against_fp64(implementation: str, dtype: torch.dtype, spans: list[tuple[int, int]]) -> None:
    case = Case(make_rows(spans), SMALL, dtype)
    case.run()
    case.check()


@cases("shape", [(shape,) for shape in SHAPES], [(shape,) for shape in FEW_HEADS])
def test_heads_of_other_widths(implementation: str, shape: Shape) -> None:
    case = Case(make_rows([(0, 3), (15, 1), (14, 5), (0, 40)]), shape)
    case.run()
    case.check()


def test_steps_are_clamped(implementation: str) -> None:
    case = Case(make_rows([(0, 1), (14, 5), (3, 1)]), SMALL, limit=LIMIT)
    case.run()
    case.check()


@pytest.mark.parametrize("isa", native_isas())
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same_bits(isa: str, threads: int) -> None:
    outs = []
    for count in (1, threads):
        with running(isa, count):
            case = Case(make_rows([(14, 5)]), (2, 2, 32, 128))
            case.run()
            case.check()
            outs.append(case.out)
    assert torch.equal(*outs)


def test_a_boundary_without_a_block_is_left_out(implementation: str) -> None:
    case = Case(make_rows([(3, 15), (30, 5)], checkpoints=False), SMALL)
    case.run()
    case.check()


@cases("sizes", [([1] * 80,), ([3, 14, 1, 47, 15],)], [([3, 14, 1, 35, 1],)])
def test_a_prompt_gives_the_same_however_it_is_cut(implementation: str, sizes: list[int]) -> None:
    """Natively the same bits. On a GPU rows of one token and of more are computed by different products, and the bits
    of plain torch hang on where in a tensor an element stands."""
    length = sum(sizes)
    whole = Case(make_rows([(0, length)]), SMALL)
    whole.run()
    state = LayerState(torch.empty(0), poisoned(8, *whole.state.recurrent.shape[1:]), BLOCK)
    pieces, start = [], 0
    for size in sizes:
        rows = make_rows([(start, size)])
        rows.meta.block_tables[0] = torch.arange(rows.meta.block_tables.shape[1])
        out, part = poisoned(size, whole.out.shape[1]), slice(start, start + size)
        whole.scan(whole.xbc[part], whole.dt[part], state, rows.meta, out)
        pieces.append(out)
        start += size
    block = (length - 1) // BLOCK
    together, last = torch.cat(pieces), int(whole.rows.meta.block_tables[0, block])
    if implementation in ("reference", "triton"):
        assert relative_error(together, whole.out) < 2e-6
        assert relative_error(state.recurrent[block], whole.state.recurrent[last]) < 2e-6
    else:
        assert torch.equal(together, whole.out)
        assert torch.equal(state.recurrent[block], whole.state.recurrent[last])


def test_rows_do_not_see_each_other(implementation: str) -> None:
    spans = [(0, 17), (5, 1), (30, 20)]
    together = Case(make_rows(spans), SMALL)
    together.run()
    for row in range(3):
        alone = Case(make_rows(spans), SMALL)
        start = alone.rows.meta.query_start_loc
        keep = alone.rows.tokens(row)
        start[:] = torch.tensor([0] * (row + 1) + [keep.stop - keep.start] * (3 - row))
        out = poisoned(keep.stop - keep.start, alone.out.shape[1])
        alone.scan(alone.xbc[keep], alone.dt[keep], alone.state, alone.rows.meta, out)
        if implementation == "reference":
            assert relative_error(out, together.out[keep]) < 1e-6
        else:
            assert torch.equal(out, together.out[keep])


def test_a_nan_stays_in_its_row(implementation: str) -> None:
    case = Case(make_rows([(0, 5), (0, 5)]), SMALL)
    case.xbc[2] = float("nan")
    case.run()
    assert case.out[2:5].isnan().all()
    assert case.out[5:].isfinite().all()
    assert case.out[:2].isfinite().all() or implementation == "triton"  # a chunk's tokens are computed together


def test_agrees_with_transformers(implementation: str) -> None:
    groups, heads, k_dim, v_dim = shape = (2, 4, 32, 32)
    case = Case(make_rows([(0, 70)]), shape, limit=LIMIT)
    case.run()
    x, b, c = case.xbc.split([heads * v_dim, groups * k_dim, groups * k_dim], dim=1)
    expected, state = mamba2_chunk_scan(
        x.reshape(1, 70, heads, v_dim),
        case.dt[None].clone(),
        -case.heads.a_log.exp(),
        b.reshape(1, 70, groups, k_dim),
        c.reshape(1, 70, groups, k_dim),
        chunk_size=16,
        D=case.heads.d,
        dt_bias=case.heads.dt_bias,
        dt_softplus=True,
        dt_limit=LIMIT,
        return_final_states=True,
    )
    last = int(case.rows.meta.block_tables[0, 69 // BLOCK])
    assert relative_error(case.out, expected.reshape(70, -1)) < 5e-6
    assert relative_error(case.state.recurrent[last], state[0].transpose(1, 2)) < 5e-6


@pytest.mark.parametrize("isa", native_isas())
def test_a_recording_serves_steps_of_any_size(isa: str) -> None:
    with running(isa):
        eager, replayed = (Case(make_rows([(0, 5), (15, 20), (30, 30)]), SMALL) for _ in range(2))
        eager.run()
        with dispatch.recording() as calls:
            replayed.run()
        assert replayed.out.isnan().all()
        program = Program(dispatch.pool(), calls, dispatch.isa())
        program.run(tokens=25, rows=2)
        assert torch.equal(replayed.out[:25], eager.out[:25])
        assert replayed.out[25:].isnan().all()
        again = Case(make_rows([(0, 5), (15, 20), (30, 30)]), SMALL)
        replayed.state.recurrent.copy_(again.state.recurrent)
        program.run(tokens=55, rows=3)
        assert torch.equal(replayed.out, eager.out)


def test_refuses_arguments_that_do_not_fit() -> None:
    case = Case(make_rows([(0, 2)]), SMALL)
    of, meta = case.heads, case.rows.meta
    with pytest.raises(ValueError, match="xbc has 103 columns"):
        case.scan(randn(2, 103), case.dt, case.state, meta, case.out)
    with pytest.raises(ValueError, match=r"dt has shape \[2, 1\]"):
        case.scan(case.xbc, case.dt[:, :1], case.state, meta, case.out)
    with pytest.raises(ValueError, match=r"d has shape \[1\]"):
        selective_scan(case.xbc, case.dt, of.a_log, of.dt_bias, of.d[:1], case.state, meta, case.out)
    case.limit = (1.0, 0.5)
    with pytest.raises(ValueError, match="dt_limit"):
        case.run()
    case.limit = LIMIT
    bad = LayerState(torch.empty(0), case.state.recurrent.bfloat16(), BLOCK)
    with pytest.raises(ValueError, match=r"state.recurrent is torch.bfloat16"):
        case.scan(case.xbc, case.dt, bad, meta, case.out)


@pytest.mark.parametrize("isa", native_isas())
def test_widths_that_are_not_native_are_no_silent_fallback(isa: str) -> None:
    case = Case(make_rows([(0, 2)]), (1, 1, 16, 24))
    with running(isa), pytest.raises(FallbackError, match=r"\[16, 24\]"):
        case.run()
    with running("reference"):
        case.run()
        case.check()
