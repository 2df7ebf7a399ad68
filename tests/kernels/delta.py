"""What the tests of gated-delta-rule ops share: implementations by name, sequences with states in pages, fp64 rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from app.kernels import dispatch
from app.kernels.dispatch import Mode
from app.kernels.native.library import ISAS, NativeError, best_isa
from app.kernels.types import AttentionMetadata
from tests.kernels.util import rng

BLOCK = 16


def native_isas() -> list[str]:
    """Those that run here, if any."""
    try:
        return list(ISAS[ISAS.index(best_isa()) :])
    except NativeError:
        return []


IMPLEMENTATIONS = ["reference", *native_isas(), "triton"]


def cases(names: str, many: Iterable[tuple[Any, ...]], few: Sequence[tuple[Any, ...]]) -> pytest.MarkDecorator:
    """``implementation`` and those parameters: many, of which Triton's interpreter, a second a case, is given few."""
    everywhere = list(many)
    return pytest.mark.parametrize(
        ("implementation", *names.split(", ")),
        [(i, *case) for i in IMPLEMENTATIONS for case in (few if i == "triton" else everywhere)],
        indirect=["implementation"],
    )


@contextmanager
def running(implementation: str, threads: int = 2) -> Iterator[None]:
    """Within it public kernels run as plain torch, natively with an instruction set, or in Triton's interpreter."""
    before = dispatch._state.mode, dispatch._state.threads, dispatch._state.isa
    if implementation == "triton":
        pytest.importorskip("triton", reason="Triton has no wheel for this machine")
        dispatch.configure(Mode.INTERPRET, threads=1)
    elif implementation == "reference":
        dispatch.configure(Mode.REFERENCE, threads=1)
    else:
        dispatch.configure(Mode.STRICT, threads, isa=implementation)
    try:
        yield
    finally:
        dispatch.configure(*before)


@dataclass
class Rows:
    """Rows (position of the first token, tokens) with scattered blocks, and where each reads and leaves its state."""

    spans: Sequence[tuple[int, int]]
    meta: AttentionMetadata
    num_blocks: int

    @property
    def num_tokens(self) -> int:
        return sum(count for _, count in self.spans)

    def source(self, row: int) -> int | None:
        start, _ = self.spans[row]
        return int(self.meta.block_tables[row, (start - 1) // BLOCK]) if start else None

    def kept(self, row: int) -> dict[int, int]:
        """Block -> position before which its state stands."""
        start, count = self.spans[row]
        end = start + count
        if not count:
            return {}
        kept = {int(self.meta.block_tables[row, (end - 1) // BLOCK]): end}
        boundary = end // BLOCK * BLOCK
        if start < boundary < end:
            kept[int(self.meta.block_tables[row, boundary // BLOCK - 1])] = boundary
        kept.pop(-1, None)
        return kept

    def tokens(self, row: int) -> slice:
        start = int(self.meta.query_start_loc[row])
        return slice(start, start + self.spans[row][1])


def make_rows(spans: Sequence[tuple[int, int]], *, checkpoints: bool = True, seed: int = 0) -> Rows:
    """Table entries that nobody may look at are wild block numbers; without checkpoints boundaries have -1."""
    width = max((start + count for start, count in spans), default=0) // BLOCK + 2
    order = torch.randperm(3 * len(spans) + 2, generator=rng(seed)).tolist()
    num_blocks = len(order)
    tables = torch.full((len(spans), width), 2**30, dtype=torch.int32)
    for row, (start, count) in enumerate(spans):
        end = start + count
        if start:
            tables[row, (start - 1) // BLOCK] = order.pop()
        boundary = end // BLOCK * BLOCK
        if start < boundary < end and tables[row, boundary // BLOCK - 1] == 2**30:
            tables[row, boundary // BLOCK - 1] = order.pop() if checkpoints else -1
        if count and tables[row, (end - 1) // BLOCK] == 2**30:
            tables[row, (end - 1) // BLOCK] = order.pop()
    counts = [count for _, count in spans]
    meta = AttentionMetadata(
        query_start_loc=torch.tensor([0, *counts]).cumsum(0).to(torch.int32),
        seq_lens=torch.tensor([start + count for start, count in spans], dtype=torch.int32),
        block_tables=tables,
        slot_mapping=torch.zeros(sum(counts), dtype=torch.int64),
        max_query_len=max(counts, default=0),
        max_seq_len=max((start + count for start, count in spans), default=0),
    )
    return Rows(spans, meta, num_blocks)


SPANS = [(0, 1), (5, 3), (0, 0), (16, 1), (15, 1), (3, 15), (16, 16), (0, 17), (30, 63), (1, 64), (0, 65), (7, 65)]
"""Within a block, across one and several, up to a boundary and past it."""
SHORT_SPANS = [(0, 1), (5, 3), (0, 0), (16, 1), (15, 1), (14, 4), (13, 3), (0, 17), (15, 18)]
"""Likewise, of few tokens: Triton's interpreter takes each by itself."""
DECODES = [(0, 1), (1, 1), (15, 1), (16, 1), (17, 1), (300, 1)]


def check_pages(
    actual: Tensor, before: Tensor, rows: Rows, states: Sequence[dict[int, Tensor]], tolerance: float
) -> None:
    """Blocks that rows leave their states in hold them (position -> fp64 state, a row), all others what was there."""
    written = set()
    for row, by_position in enumerate(states):
        for block, position in rows.kept(row).items():
            expected = by_position[position]
            written.add(block)
            error = (actual[block].double() - expected).norm()
            assert error <= tolerance * expected.norm(), (row, position)
    for block in set(range(rows.num_blocks)) - written:
        assert torch.equal(actual[block].nan_to_num(7), before[block].nan_to_num(7)), block
