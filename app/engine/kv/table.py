"""A sequence's block table of one KV group."""

from __future__ import annotations

from collections.abc import Iterable

from app.contract.info import NO_BLOCK
from app.engine.kv.pool import IntegrityError


class BlockTable:
    """Entry b is the block of positions ``[b * block_size, (b + 1) * block_size)``, or :data:`NO_BLOCK`."""

    __slots__ = ("entries", "first", "num_held")

    def __init__(self, entries: Iterable[int] = ()) -> None:
        self.entries = list(entries)
        self.first = 0
        """Index of the first entry that may hold a block: those before it were dropped."""
        self.num_held = sum(block_id != NO_BLOCK for block_id in self.entries)
        """Blocks that the table holds."""

    def held(self) -> list[int]:
        """The blocks that the table holds, in order."""
        return [block_id for block_id in self.entries if block_id != NO_BLOCK]

    def extend(self, entries: list[int]) -> None:
        """Appends blocks and placeholders."""
        self.entries += entries
        self.num_held += sum(block_id != NO_BLOCK for block_id in entries)

    def num_leaving(self, first: int) -> int:
        """Blocks held before entry ``first``."""
        return sum(block_id != NO_BLOCK for block_id in self.entries[self.first : first])

    def drop(self, first: int) -> list[int]:
        """Lets go of the entries before ``first``; returns the blocks that they held."""
        leaving = [block_id for block_id in self.entries[self.first : first] if block_id != NO_BLOCK]
        for index in range(self.first, min(first, len(self.entries))):
            self.entries[index] = NO_BLOCK
        self.first = max(self.first, first)
        self.num_held -= len(leaving)
        return leaving

    def check_integrity(self) -> None:
        """Compares the counts with the entries.

        Raises:
            IntegrityError: they differ.
        """
        if len(self.held()) != self.num_held or any(block_id != NO_BLOCK for block_id in self.entries[: self.first]):
            raise IntegrityError(f"a table of {self.num_held} blocks from entry {self.first} on: {self.entries}")
