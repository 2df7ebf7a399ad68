"""Pages of a fake runner, one kind for each kind of KV group: what is in a block is known, and checked when it is read.

Every kind gives a sequence's whole context back. Full attention reads all tokens. A sliding layer reads those of its
window, each of which carries on what the layers below knew, so that a key stands for its whole past: a node of a chain.
A recurrent state is one such node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from app.contract.info import NO_BLOCK, KVCacheGroup


class StepContractError(BaseException):
    """The scheduler broke the step contract. Not an Exception: the engine must not take it for a failed step."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise StepContractError(message)


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A token and all before it."""

    position: int
    token: int
    before: Node | None

    def context(self) -> list[int]:
        tokens, before = [self.token], self.before
        while before is not None:
            tokens.append(before.token)
            before = before.before
        return tokens[::-1]


class Pages(Protocol):
    """One group's. ``table`` is a slot's."""

    def load(self, table: Sequence[int], start: int) -> Node | None:
        """What a row that begins at ``start`` takes from the steps before, read before any row of its step writes."""

    def write(self, table: Sequence[int], start: int, tokens: Sequence[int], before: Node | None) -> None:
        """Writes a row's tokens."""

    def read(self, table: Sequence[int], end: int) -> list[int]:
        """The tokens before ``end``, after all rows of the step have written."""

    def contents(self, block: int) -> Any:
        """What a block holds, to be copied."""

    def fill(self, block: int, contents: Any) -> None:
        """Gives a block what :meth:`contents` gave of one."""


def _block(table: Sequence[int], index: int) -> int:
    require(table[index] != NO_BLOCK, f"entry {index} of a table is read or written, but holds nothing: {table}")
    return table[index]


class FullPages:
    def __init__(self, group: KVCacheGroup, block_size: int) -> None:
        self._size = block_size
        self._entries: list[list[tuple[int, int] | None]] = [[None] * block_size for _ in range(group.num_blocks)]

    def load(self, table: Sequence[int], start: int) -> Node | None:
        require(len(set(table)) == len(table), f"a table names a block twice: {table}")
        return None

    def write(self, table: Sequence[int], start: int, tokens: Sequence[int], before: Node | None) -> None:
        for position, token in enumerate(tokens, start):
            self._entries[_block(table, position // self._size)][position % self._size] = (position, token)

    def read(self, table: Sequence[int], end: int) -> list[int]:
        context: list[int] = []
        for position in range(end):
            entry = self._entries[_block(table, position // self._size)][position % self._size]
            if entry is None or entry[0] != position:
                raise StepContractError(f"position {position} is not in its page: {entry}")
            context.append(entry[1])
        return context

    def contents(self, block: int) -> Any:
        return self._entries[block]

    def fill(self, block: int, contents: Any) -> None:
        self._entries[block] = contents


class SlidingPages:
    def __init__(self, group: KVCacheGroup, block_size: int) -> None:
        assert group.window is not None
        self._size, self._window = block_size, group.window
        self._entries: list[list[Node | None]] = [[None] * block_size for _ in range(group.num_blocks)]

    def load(self, table: Sequence[int], start: int) -> Node | None:
        return None  # a row may share what another row of its step writes

    def write(self, table: Sequence[int], start: int, tokens: Sequence[int], before: Node | None) -> None:
        for position in range(max(0, start - self._window + 1), start):
            before = self._at(table, position)
        for position, token in enumerate(tokens, start):
            before = Node(position, token, before)
            self._entries[_block(table, position // self._size)][position % self._size] = before

    def read(self, table: Sequence[int], end: int) -> list[int]:
        return self._at(table, end - 1).context()

    def _at(self, table: Sequence[int], position: int) -> Node:
        entry = self._entries[_block(table, position // self._size)][position % self._size]
        if entry is None or entry.position != position:
            raise StepContractError(f"position {position} is not in its page: {entry and entry.position}")
        return entry

    def contents(self, block: int) -> Any:
        return self._entries[block]

    def fill(self, block: int, contents: Any) -> None:
        self._entries[block] = contents


class StatePages:
    def __init__(self, group: KVCacheGroup, block_size: int) -> None:
        self._size = block_size
        self._states: list[Node | None] = [None] * group.num_blocks

    def load(self, table: Sequence[int], start: int) -> Node | None:
        return self._after(table, start - 1) if start else None

    def write(self, table: Sequence[int], start: int, tokens: Sequence[int], before: Node | None) -> None:
        end = start + len(tokens)
        boundary = end // self._size * self._size
        for position, token in enumerate(tokens, start):
            before = Node(position, token, before)
            if position + 1 in (boundary, end):
                self._states[_block(table, position // self._size)] = before

    def read(self, table: Sequence[int], end: int) -> list[int]:
        return self._after(table, end - 1).context()

    def _after(self, table: Sequence[int], position: int) -> Node:
        state = self._states[_block(table, position // self._size)]
        if state is None or state.position != position:
            raise StepContractError(f"the state after position {position} is not there: {state and state.position}")
        return state

    def contents(self, block: int) -> Any:
        return self._states[block]

    def fill(self, block: int, contents: Any) -> None:
        self._states[block] = contents


PAGES: dict[str, type[FullPages | SlidingPages | StatePages]] = {
    "full": FullPages,
    "sliding": SlidingPages,
    "state": StatePages,
}


def new_pages(group: KVCacheGroup, block_size: int) -> Pages:
    return PAGES[group.kind](group, block_size)
