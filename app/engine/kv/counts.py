"""Arithmetic over numbers of blocks, one for each KV group."""

from __future__ import annotations

Counts = tuple[int, ...]
"""Blocks of each KV group."""


def all_fit(wanted: Counts, available: Counts) -> bool:
    """Whether each group has the blocks that are wanted of it."""
    return all(count <= room for count, room in zip(wanted, available, strict=True))


def added(*counts: Counts) -> Counts:
    """The sum, group by group."""
    return tuple(map(sum, zip(*counts, strict=True)))


def subtracted(counts: Counts, others: Counts) -> Counts:
    """The difference, group by group."""
    return tuple(count - other for count, other in zip(counts, others, strict=True))
