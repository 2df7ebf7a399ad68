"""Policy of recurrent state: a block is the state after some token; states at block boundaries can be shared.

A row reads the block of the token before it and writes that of its last token, another one once a boundary lies between
them: a block that was left at a boundary is never written again. Decoding leaves one at every boundary it passes; a
longer row leaves one at the last boundary that it passes. Where prefixes part, a row is made to end (``Hit.parting``).
"""

from __future__ import annotations

from collections.abc import Sequence

from app.engine.kv.group import WindowPolicy


class StatePolicy(WindowPolicy):
    """A hit behind n blocks needs the state at that boundary, and nothing else."""

    can_rewind = False
    """An earlier token's state cannot be computed from a later one's."""
    readable_at_once = False
    """Rows of a step are computed at once, each from the state that was there when the step began."""
    leaves_at_ends = True

    def first_kept(self, position: int) -> int:
        return max(0, position - 1) // self.block_size

    def allocated(self, first: int, end: int) -> Sequence[int]:
        boundary, last = end // self.block_size - 1, (end - 1) // self.block_size
        return range(max(first, boundary), last + 1)

    def published(self, first: int, num_full: int) -> Sequence[int]:
        return range(max(first, num_full - 1), num_full)
