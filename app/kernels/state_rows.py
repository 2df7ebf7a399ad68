"""Blocks from which rows read recurrent state and in which they leave it, for the reference kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from app.kernels.types import AttentionMetadata


@dataclass(frozen=True, slots=True)
class StateRow:
    """A row that has tokens."""

    tokens: slice
    """The row's tokens among those of the step."""
    source: int | None
    """Block of the state before its first token; None for zeros."""
    kept: tuple[tuple[int, int], ...]
    """(tokens of the row, block): the state after so many tokens is left in that block."""


def state_rows(meta: AttentionMetadata, block_size: int) -> Iterator[StateRow]:
    """The step's rows, without empty ones; :class:`~app.kernels.types.LayerState` says which blocks are theirs."""
    starts, ends = meta.query_start_loc.tolist(), meta.seq_lens.tolist()
    for row, end in enumerate(ends):
        count = starts[row + 1] - starts[row]
        if count == 0:
            continue
        start, boundary, table = end - count, end // block_size * block_size, meta.block_tables[row]
        source = int(table[(start - 1) // block_size]) if start > 0 else -1
        kept = [(count, int(table[(end - 1) // block_size]))]
        if start < boundary < end:
            kept.insert(0, (boundary - start, int(table[boundary // block_size - 1])))
        yield StateRow(
            slice(starts[row], starts[row + 1]),
            source if source >= 0 else None,
            tuple((tokens, block) for tokens, block in kept if block >= 0),
        )
