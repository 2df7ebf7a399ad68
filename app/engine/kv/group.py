"""Policies of KV groups: which blocks a sequence has, which of them are still read, what makes a prefix hit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from app.contract.info import KVCacheGroup


class GroupPolicy(ABC):
    """Rules of one KV group.

    Block b of a sequence is the one of positions ``[b * block_size, (b + 1) * block_size)``.
    """

    keeps_all: ClassVar[bool]
    """Whether no block is given back before the request ends. A hit then needs all blocks before it."""
    can_rewind: ClassVar[bool] = True
    """Whether a sequence can go back by some tokens: what was written for them is written again."""
    readable_at_once: ClassVar[bool] = True
    """Whether other rows of the same step can read what a row writes."""
    leaves_at_ends: ClassVar[bool] = False
    """Whether only the end of a row leaves what a hit needs, not the end of every block."""

    def __init__(self, group: KVCacheGroup, block_size: int) -> None:
        self.group = group
        self.block_size = block_size

    @abstractmethod
    def first_kept(self, position: int) -> int:
        """First block that a token at ``position``, or one behind it, may read."""

    @abstractmethod
    def longest_hit(self, num_blocks: int, has: Callable[[int], bool]) -> int:
        """The largest number of blocks, at most ``num_blocks``, behind which a sequence can start.

        Args:
            has: tells whether the block with an index is published.
        """

    @abstractmethod
    def max_chunk(self, max_tokens: int, max_model_len: int) -> int:
        """Tokens that a row may have for a sequence to fit alone, at most ``max_tokens``; at least 1."""

    @abstractmethod
    def capacity(self, max_model_len: int) -> int:
        """Blocks of the longest sequence that the group holds alone, computed by rows of one token if need be."""

    def allocated(self, first: int, end: int) -> Sequence[int]:
        """Indices of the blocks from ``first`` on that a row needs, if it ends before position ``end``."""
        return range(first, -(-end // self.block_size))

    def published(self, first: int, num_full: int) -> Sequence[int]:
        """Indices of the blocks ``first … num_full - 1`` that hold what a hit needs, once ``num_full`` are full."""
        return range(first, num_full)


class WindowPolicy(GroupPolicy):
    """Policy of a group that keeps only the end of a sequence."""

    keeps_all = False

    def longest_hit(self, num_blocks: int, has: Callable[[int], bool]) -> int:
        index = num_blocks
        while num_blocks > 0:
            first = self.first_kept(num_blocks * self.block_size)
            while index > first and has(index - 1):
                index -= 1
            if index <= first:
                return num_blocks
            num_blocks = index = index - 1  # this one lacks, so that no sequence can start right behind it
        return 0

    def max_chunk(self, max_tokens: int, max_model_len: int) -> int:
        if not self._fits(1, max_model_len):
            return max_tokens  # sequences are no longer than all blocks together, and fit however they come
        low, high = 1, max_tokens
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._fits(middle, max_model_len) else (low, middle - 1)
        return low

    def capacity(self, max_model_len: int) -> int:
        if self._fits(1, max_model_len):
            return max(self.group.num_blocks, -(-max_model_len // self.block_size))
        return self.group.num_blocks

    def _fits(self, chunk: int, max_model_len: int) -> bool:
        return self.group.most_blocks(max_model_len, self.block_size, chunk=chunk) <= self.group.num_blocks
