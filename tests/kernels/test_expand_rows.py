"""``expand_rows``: the rows that the host tells of, spread over their tokens; each implementation alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from app.kernels import dispatch
from app.kernels.dispatch import Mode
from app.kernels.expand_rows import expand_rows
from app.kernels.types import AttentionMetadata, StepRows, StepTokens
from tests.kernels.util import poisoned

BLOCK, SLOTS, WIDTH = 4, 6, 400
NATIVE = pytest.param(
    Mode.STRICT, marks=pytest.mark.skipif(dispatch.unavailable() is not None, reason="no native kernels here")
)


@pytest.fixture(params=[Mode.REFERENCE, NATIVE, Mode.INTERPRET], ids=lambda mode: mode.value, autouse=True)
def mode(request: pytest.FixtureRequest) -> Iterator[Mode]:
    if request.param is Mode.INTERPRET:
        pytest.importorskip("triton", reason="Triton has no wheel for this machine")
    dispatch.configure(request.param, threads=2)
    yield request.param
    dispatch.configure(Mode.AUTO, threads=1)


@dataclass
class Row:
    """What a test says of a row."""

    slot: int
    length: int
    tokens: list[int] | None
    """None: the one that the slot sampled last."""
    held: int = 0
    new: list[int] = field(default_factory=list)
    wanted: int = 1


@dataclass
class Step:
    """Rows as the kernel takes them, and where it writes."""

    rows: StepRows
    out: StepTokens
    meta: AttentionMetadata


def int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def starts(counts: list[int], begin: int = 0) -> Tensor:
    return int32([begin + sum(counts[:i]) for i in range(len(counts) + 1)])


def step_of(rows: list[Row]) -> Step:
    counts = [1 if row.tokens is None else len(row.tokens) for row in rows]
    feed = [token for row in rows for token in (row.tokens or [-1])]
    tokens = len(feed)
    gap = 3  # whatever lies between the tokens and the new blocks is nobody's
    feed += [-1] * gap + [block for row in rows for block in row.new]
    wanted = [row.wanted for row in rows]
    return Step(
        StepRows(
            slots=int32([row.slot for row in rows]),
            carried=int32([row.tokens is None for row in rows]),
            table_lens=int32([row.held for row in rows]),
            new_block_loc=starts([len(row.new) for row in rows], tokens + gap),
            logit_start_loc=starts(wanted),
            feed=int32(feed),
        ),
        StepTokens(
            token_ids=poisoned(tokens, dtype=torch.int64),
            positions=poisoned(tokens, dtype=torch.int64),
            logit_indices=poisoned(sum(wanted), dtype=torch.int64),
        ),
        AttentionMetadata(
            query_start_loc=starts(counts),
            seq_lens=int32([row.length for row in rows]),
            block_tables=poisoned(len(rows), WIDTH, dtype=torch.int32),
            slot_mapping=poisoned(tokens, dtype=torch.int64),
            max_query_len=max(counts, default=0),
            max_seq_len=max((row.length for row in rows), default=0),
        ),
    )


def expand(step: Step, tables: Tensor, last: Tensor) -> None:
    expand_rows(step.rows, tables, last, step.out, step.meta, block_size=BLOCK)


def test_prompts_and_decodes_beside_each_other() -> None:
    tables, last = poisoned(SLOTS, WIDTH, dtype=torch.int32), torch.arange(100, 100 + SLOTS)
    tables[4, :3] = int32([7, 3, 9])
    tables[1, :2] = int32([0, 5])
    rows = [
        Row(slot=4, length=11, tokens=None, held=3),  # in its last block
        Row(slot=2, length=6, tokens=[21, 22, 23, 24, 25, 26], new=[8, 2], wanted=2),
        Row(slot=1, length=9, tokens=None, held=2, new=[6]),  # at a new block's first place
        Row(slot=0, length=10, tokens=[31, 32], held=0, new=[11, 12, 13, 14], wanted=0),  # a prefix that was there
    ]
    step = step_of(rows)
    expand(step, tables, last)
    assert step.out.token_ids.tolist() == [104, 21, 22, 23, 24, 25, 26, 101, 31, 32]
    assert step.out.positions.tolist() == [10, 0, 1, 2, 3, 4, 5, 8, 8, 9]
    assert step.meta.slot_mapping.tolist() == [
        *(9 * BLOCK + 2, 8 * BLOCK, 8 * BLOCK + 1, 8 * BLOCK + 2, 8 * BLOCK + 3, 2 * BLOCK, 2 * BLOCK + 1, 6 * BLOCK),
        *(13 * BLOCK, 13 * BLOCK + 1),
    ]
    assert step.out.logit_indices.tolist() == [0, 5, 6, 7]
    blocks = step.meta.block_tables
    assert blocks[0, :3].tolist() == [7, 3, 9]
    assert blocks[1, :2].tolist() == [8, 2]
    assert blocks[2, :3].tolist() == [0, 5, 6]
    assert blocks[3, :3].tolist() == [11, 12, 13]
    assert tables[2, :2].tolist() == [8, 2]
    assert tables[1, :3].tolist() == [0, 5, 6]
    assert tables[0, :4].tolist() == [11, 12, 13, 14]
    assert set(tables[3].tolist()) == set(tables[5].tolist()) == {99}, "slots that are not in the step"
    assert tables[4, 3:].eq(99).all()


@pytest.mark.parametrize("count", [1, 255, 256, 257, 1100])
def test_prompts_of_many_blocks(count: int) -> None:
    tables, last = poisoned(SLOTS, WIDTH, dtype=torch.int32), torch.zeros(SLOTS, dtype=torch.int64)
    blocks = [(7 * i) % 1000 for i in range(-(-count // BLOCK))]
    tokens = list(range(count))
    step = step_of([Row(slot=3, length=count, tokens=tokens, new=blocks, wanted=count)])
    expand(step, tables, last)
    assert step.out.token_ids.tolist() == tokens
    assert step.out.positions.tolist() == tokens
    assert step.meta.slot_mapping.tolist() == [blocks[i // BLOCK] * BLOCK + i % BLOCK for i in range(count)]
    assert step.out.logit_indices.tolist() == tokens
    assert tables[3, : len(blocks)].tolist() == blocks


def test_many_decodes_with_and_without_new_blocks() -> None:
    """More rows than one thread takes at once."""
    tables = torch.arange(40 * WIDTH, dtype=torch.int32).view(40, WIDTH)
    before, last = tables.clone(), torch.arange(40) + 1000
    lengths = [1 + 13 * i for i in range(40)]
    rows = []
    for slot, length in enumerate(lengths):
        fresh = [5000 + slot] if length % BLOCK == 1 else []
        rows.append(Row(slot, length, None, held=-(-length // BLOCK) - len(fresh), new=fresh))
    step = step_of(rows)
    expand(step, tables, last)
    for slot, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        expected = (before[slot, : row.held].tolist() + row.new)[: -(-length // BLOCK)]
        assert tables[slot, : len(expected)].tolist() == expected
        assert step.meta.block_tables[slot, : len(expected)].tolist() == expected
        assert step.meta.slot_mapping[slot] == expected[-1] * BLOCK + (length - 1) % BLOCK
    assert step.out.token_ids.equal(last)
    assert step.out.positions.tolist() == [length - 1 for length in lengths]
    assert step.out.logit_indices.tolist() == list(range(40))


def test_another_group_has_its_tables_and_slots_alone_filled_in() -> None:
    """Blocks of its own, and places that it keeps nothing at."""
    tables, last = poisoned(SLOTS, WIDTH, dtype=torch.int32), torch.arange(100, 100 + SLOTS)
    tables[4, :3] = int32([-1, 3, 9])
    rows = [Row(slot=4, length=11, tokens=None, held=3), Row(slot=2, length=6, tokens=[21, 22], new=[-1, 2])]
    step = step_of(rows)
    expand_rows(step.rows, tables, last, None, step.meta, block_size=BLOCK)
    assert step.meta.slot_mapping.tolist() == [9 * BLOCK + 2, 2 * BLOCK, 2 * BLOCK + 1]
    assert step.meta.block_tables[0, :3].tolist() == [-1, 3, 9]
    assert step.meta.block_tables[1, :2].tolist() == tables[2, :2].tolist() == [-1, 2]
    untouched = poisoned(3, dtype=torch.int64)
    assert all(vector.equal(untouched[: vector.numel()]) for vector in (step.out.token_ids, step.out.positions))
    assert step.out.logit_indices.equal(untouched[:2])


def test_arguments_that_do_not_fit() -> None:
    tables, last = torch.zeros(SLOTS, WIDTH, dtype=torch.int32), torch.zeros(SLOTS, dtype=torch.int64)
    step = step_of([Row(0, 1, [5], new=[0])])
    with pytest.raises(ValueError, match=r"expand_rows: last_token has shape \[5\], expected \[6\]"):
        expand(step, tables, last[:5])
    with pytest.raises(ValueError, match=r"expand_rows: block_tables has shape \[1, 400\], expected \[1, 2\]"):
        expand(step, tables[:, :2].contiguous(), last)
    with pytest.raises(ValueError, match=r"expand_rows: tables is torch.int64, expected torch.int32"):
        expand(step, tables.long(), last)
