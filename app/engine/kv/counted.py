"""Policy of blocks that hold nothing: they count the tokens of sequences whose caches a runner keeps by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from app.engine.kv.full import FullPolicy


class CountedPolicy(FullPolicy):
    """Full attention's counts, without a prefix cache: no sequence can start from another's blocks."""

    can_rewind = False
    """What a cache has taken in stays there."""

    def longest_hit(self, num_blocks: int, has: Callable[[int], bool]) -> int:
        del num_blocks, has
        return 0

    def published(self, first: int, num_full: int) -> Sequence[int]:
        del first, num_full
        return ()
