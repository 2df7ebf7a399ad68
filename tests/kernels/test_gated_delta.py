"""``gated_delta`` in every form against the rule in float64, and against transformers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen3_next.modeling_qwen3_next import (
    torch_chunk_gated_delta_rule,
    torch_recurrent_gated_delta_rule,
)

from app.kernels import dispatch
from app.kernels.dispatch import FallbackError
from app.kernels.gated_delta import gated_delta
from app.kernels.native.program import Program
from app.kernels.types import LayerState
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
"""Key heads, value heads and their widths."""
SHAPES: list[Shape] = [(1, 1, 16, 16), (2, 4, 20, 48), (1, 3, 64, 80), (2, 2, 128, 128)]
FEW_HEADS: list[Shape] = [(1, 1, 16, 16), (2, 4, 20, 48), (1, 1, 64, 80), (1, 1, 128, 128)]
SMALL: Shape = (1, 2, 20, 32)


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with running(request.param):
        yield request.param


class Sequence:
    """A whole sequence: inputs, and by the rule in float64 its outputs and the state behind every token."""

    def __init__(
        self, length: int, shape: Shape, a_log: Tensor, dt_bias: Tensor, dtype: torch.dtype, seed: int
    ) -> None:
        key_heads, heads, k_dim, v_dim = shape
        self.qkv = randn(length, 2 * key_heads * k_dim + heads * v_dim, seed=seed, dtype=dtype)
        self.b = randn(length, heads, seed=seed + 1, dtype=dtype)
        self.a = randn(length, heads, seed=seed + 2, dtype=dtype)
        self.out = torch.empty(length, heads * v_dim, dtype=torch.float64)
        self.states = [torch.zeros(heads, k_dim, v_dim, dtype=torch.float64)]
        parts = self.qkv.double().split([key_heads * k_dim] * 2 + [heads * v_dim], dim=1)
        for t in range(length):
            state = torch.empty_like(self.states[0])
            for head in range(heads):
                near = slice(head // (heads // key_heads) * k_dim, (head // (heads // key_heads) + 1) * k_dim)
                q, k = (part[t, near] / (part[t, near].square().sum() + 1e-6).sqrt() for part in parts[:2])
                v = parts[2][t, head * v_dim : (head + 1) * v_dim]
                beta = 1 / (1 + math.exp(-float(self.b[t, head])))
                softplus = math.log1p(math.exp(float(self.a[t, head]) + float(dt_bias[head])))
                s = self.states[-1][head] * math.exp(-math.exp(float(a_log[head])) * softplus)
                s = s + torch.outer(k, beta * (v - s.t() @ k))
                state[head] = s
                self.out[t, head * v_dim : (head + 1) * v_dim] = s.t() @ q / math.sqrt(k_dim)
            self.states.append(state)


class Case:
    """Whole sequences, of which the step's rows are the ends; pages hold the states that rows begin with."""

    def __init__(self, rows: Rows, shape: Shape, dtype: torch.dtype = torch.float32) -> None:
        _, heads, k_dim, v_dim = shape
        self.rows, self.heads = rows, heads
        self.a_log, self.dt_bias = randn(heads, seed=77), randn(heads, seed=78)
        self.sequences = [
            Sequence(start + count if count else 0, shape, self.a_log, self.dt_bias, dtype, 10 * row)
            for row, (start, count) in enumerate(rows.spans)
        ]
        ends = [sequence.qkv[start:] for (start, _), sequence in zip(rows.spans, self.sequences, strict=True)]
        self.qkv = torch.cat(ends)
        # Columns of one tensor, as a layer has them.
        self.gates = poisoned(rows.num_tokens, 2 * heads + 3, dtype=dtype)
        pages = poisoned(rows.num_blocks, heads, k_dim, v_dim)
        for row, ((start, _), sequence) in enumerate(zip(rows.spans, self.sequences, strict=True)):
            self.gates[rows.tokens(row), :heads] = sequence.b[start:]
            self.gates[rows.tokens(row), heads : 2 * heads] = sequence.a[start:]
            source = rows.source(row)
            if source is not None and rows.spans[row][1]:
                pages[source] = sequence.states[start]
        self.before_pages = pages
        self.state = LayerState(torch.empty(0), pages.clone(), BLOCK)
        self.out = poisoned(rows.num_tokens, heads * v_dim, dtype=dtype)

    def run(self) -> None:
        b, a = self.gates[:, : self.heads], self.gates[:, self.heads : 2 * self.heads]
        gated_delta(self.qkv, b, a, self.a_log, self.dt_bias, self.state, self.rows.meta, self.out)

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
        b, a = whole.gates[part, : whole.heads], whole.gates[part, whole.heads : 2 * whole.heads]
        gated_delta(whole.qkv[part], b, a, whole.a_log, whole.dt_bias, state, rows.meta, out)
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
        b, a = alone.gates[keep, : alone.heads], alone.gates[keep, alone.heads : 2 * alone.heads]
        gated_delta(alone.qkv[keep], b, a, alone.a_log, alone.dt_bias, alone.state, alone.rows.meta, out)
        if implementation == "reference":
            assert relative_error(out, together.out[keep]) < 1e-6
        else:
            assert torch.equal(out, together.out[keep])


def test_a_nan_stays_in_its_row(implementation: str) -> None:
    case = Case(make_rows([(0, 5), (0, 5)]), SMALL)
    case.qkv[2] = float("nan")
    case.run()
    assert case.out[2:5].isnan().all()
    assert case.out[5:].isfinite().all()
    assert case.out[:2].isfinite().all() or implementation == "triton"  # a chunk's tokens are computed together


def test_keys_that_repeat_without_decay(implementation: str) -> None:
    """Every token corrects the same answer: the system of a chunk is as far from the identity as can be."""
    case = Case(make_rows([(0, 64)]), SMALL)
    sequence = case.sequences[0]
    _, heads, k_dim, _ = SMALL
    case.qkv[:, : 2 * k_dim] = case.qkv[0, : 2 * k_dim]
    case.gates[:, :heads], case.gates[:, heads : 2 * heads] = 30.0, -30.0
    case.run()
    # With beta 1 and no decay the state answers a key with the value that it was given last.
    q, k = case.qkv[0, :k_dim].double(), case.qkv[0, k_dim : 2 * k_dim].double()
    factor = (q @ k) / ((q @ q + 1e-6).sqrt() * (k @ k + 1e-6).sqrt() * math.sqrt(k_dim))
    expected = sequence.qkv[:, 2 * k_dim :].double() * factor
    assert relative_error(case.out, expected) < 1e-4


@pytest.mark.parametrize("rule", [torch_recurrent_gated_delta_rule, torch_chunk_gated_delta_rule])
def test_agrees_with_transformers(implementation: str, rule: object) -> None:
    key_heads, heads, k_dim, v_dim = shape = (2, 4, 32, 32)
    case = Case(make_rows([(0, 70)]), shape)
    case.run()
    q, k, v = case.qkv.split([key_heads * k_dim] * 2 + [heads * v_dim], dim=1)
    decay = -case.a_log.exp() * F.softplus(case.sequences[0].a + case.dt_bias)
    assert callable(rule)
    expected, state = rule(
        q.view(1, 70, key_heads, k_dim),
        k.view(1, 70, key_heads, k_dim),
        v.view(1, 70, heads, v_dim),
        g=decay[None],
        beta=case.sequences[0].b.sigmoid()[None],
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    last = int(case.rows.meta.block_tables[0, 69 // BLOCK])
    assert relative_error(case.out, expected.reshape(70, -1)) < 2e-6
    assert relative_error(case.state.recurrent[last], state[0]) < 2e-6


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
    b, a = case.gates[:, :2], case.gates[:, 2:4]
    rest = (case.a_log, case.dt_bias, case.state, case.rows.meta, case.out)
    with pytest.raises(ValueError, match="qkv has 103 columns"):
        gated_delta(randn(2, 103), b, a, *rest)
    with pytest.raises(ValueError, match=r"b has shape \[2, 1\]"):
        gated_delta(case.qkv, b[:, :1], a, *rest)
    with pytest.raises(ValueError, match="elements apart"):
        gated_delta(case.qkv, b, a.contiguous(), *rest)
    bad = LayerState(torch.empty(0), case.state.recurrent.bfloat16(), BLOCK)
    with pytest.raises(ValueError, match=r"state.recurrent is torch.bfloat16"):
        gated_delta(case.qkv, b, a, case.a_log, case.dt_bias, bad, case.rows.meta, case.out)


@pytest.mark.parametrize("isa", native_isas())
def test_widths_that_are_not_native_are_no_silent_fallback(isa: str) -> None:
    case = Case(make_rows([(0, 2)]), (1, 1, 16, 24))
    with running(isa), pytest.raises(FallbackError, match=r"\[16, 24\]"):
        case.run()
    with running("reference"):
        case.run()
        case.check()
