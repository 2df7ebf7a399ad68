"""Stop strings in text that arrives piece by piece."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StopResult:
    """Text that may go out, and the stop string that was met, if any."""

    text: str
    stop: str | None = None


class StopMatcher:
    """Holds back what could be the start of a stop string, and ends the text at the first one.

    The first stop string is the one whose last character comes first; of several that end there, the longest. So the
    outcome does not depend on how the text is cut into pieces. Nothing of the match and nothing after it is ever
    released; with ``include_stop`` the match itself is.

    An Aho-Corasick automaton reads each character once, however many stop strings there are.
    """

    def __init__(self, stops: Sequence[str], include_stop: bool = False) -> None:
        """
        Raises:
            ValueError: a stop string is empty.
        """
        if "" in stops:
            raise ValueError("a stop string must not be empty")
        self._root = _build_automaton(stops)
        self._node = self._root
        self._held = ""
        self._include_stop = include_stop
        self._matched = False

    @property
    def held_chars(self) -> int:
        """Number of characters taken but not released."""
        return len(self._held)

    def push(self, text: str) -> StopResult:
        """Takes the next piece of text. After a match everything is dropped."""
        if self._matched:
            return StopResult("")
        node = self._node
        for index, character in enumerate(text):
            node = _advance(node, character)
            if node.match:
                return self._finish(self._held + text[: index + 1], node.match)
        self._node = node
        # The node stands for the longest end of the text that begins a stop string.
        pending = self._held + text
        released = len(pending) - node.depth
        self._held = pending[released:]
        return StopResult(pending[:released])

    def flush(self) -> str:
        """Releases what is held: the generation ended without a match."""
        held, self._held = self._held, ""
        self._node = self._root
        return held

    def _finish(self, pending: str, stop: str) -> StopResult:
        self._matched = True
        self._held = ""
        return StopResult(pending if self._include_stop else pending[: -len(stop)], stop)


@dataclass(slots=True, eq=False)
class _Node:
    """A prefix of some stop string: the longest one that the text read so far ends with."""

    depth: int
    match: str | None = None
    """The longest stop string that ends here."""
    fallback: _Node | None = None
    """Node of the next shorter prefix that the text also ends with; None for the root."""
    children: dict[str, _Node] = field(default_factory=dict)


def _build_automaton(stops: Sequence[str]) -> _Node:
    root = _Node(depth=0)
    for stop in stops:
        node = root
        for character in stop:
            node = node.children.setdefault(character, _Node(node.depth + 1))
        node.match = stop
    queue = deque([root])
    while queue:
        node = queue.popleft()
        for character, child in node.children.items():
            child.fallback = _advance(node.fallback, character) if node.fallback else root
            child.match = child.match or child.fallback.match
            queue.append(child)
    return root


def _advance(node: _Node, character: str) -> _Node:
    while True:
        child = node.children.get(character)
        if child is not None:
            return child
        if node.fallback is None:
            return node
        node = node.fallback
