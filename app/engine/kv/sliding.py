"""Policy of sliding-window attention: blocks that every later token's window has left are given back."""

from __future__ import annotations

from app.contract.info import KVCacheGroup
from app.engine.kv.group import WindowPolicy


class SlidingPolicy(WindowPolicy):
    """A hit behind n blocks needs those that the next token's window reaches into."""

    def __init__(self, group: KVCacheGroup, block_size: int) -> None:
        super().__init__(group, block_size)
        if group.window is None or group.window < 1:
            raise ValueError(f"a sliding group needs a window of at least 1, not {group.window}")
        self._window = group.window

    def first_kept(self, position: int) -> int:
        return max(0, position - self._window + 1) // self.block_size
