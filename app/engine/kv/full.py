"""Policy of full attention: every block is kept and read until the request ends."""

from __future__ import annotations

from collections.abc import Callable

from app.engine.kv.group import GroupPolicy


class FullPolicy(GroupPolicy):
    """A hit is the longest run of blocks from the first on."""

    keeps_all = True

    def first_kept(self, position: int) -> int:
        del position
        return 0

    def longest_hit(self, num_blocks: int, has: Callable[[int], bool]) -> int:
        for index in range(num_blocks):
            if not has(index):
                return index
        return num_blocks

    def max_chunk(self, max_tokens: int, max_model_len: int) -> int:
        del max_model_len
        return max_tokens

    def capacity(self, max_model_len: int) -> int:
        del max_model_len
        return self.group.num_blocks
