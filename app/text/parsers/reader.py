"""A reply's text that comes in pieces, read by generators that pause where a piece ends.

A reader decides nothing by where a piece ends: what may still become something else is waited for. So any cut of a text
gives the same parts as the whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from functools import cache
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Pauses for more text, and returns what it read."""
Emit = Callable[[str], object]

_SPACES = re.compile(r"\s*")
_OUTSIDE_STRING = re.compile(r'["{}\[\]]')
_IN_STRING = re.compile(r'["\\]')
_AFTER_SCALAR = re.compile(r"[\s,}\]<]")


class Reader:
    """Text of one reply: what came, how far it was read, and whether more may come."""

    def __init__(self) -> None:
        self.ended = False
        self._text = ""
        self._at = 0
        self._mark: int | None = None

    def feed(self, text: str) -> None:
        """Takes the next piece."""
        keep = self._at if self._mark is None else self._mark
        self._text = self._text[keep:] + text
        self._at -= keep
        if self._mark is not None:
            self._mark = 0

    @property
    def rest(self) -> str:
        """What came and was not read."""
        return self._text[self._at :]

    def skip(self, count: int) -> None:
        """Reads so many characters."""
        self._at += count

    def mark(self, before: int = 0) -> None:
        """Keeps the text from here on, and ``before`` characters before it, for :meth:`since_mark`."""
        self._mark = self._at - before

    def since_mark(self) -> str:
        """What was read since the mark, which is given up."""
        start = self._at if self._mark is None else self._mark
        self._mark = None
        return self._text[start : self._at]

    def have(self, count: int) -> Steps[bool]:
        """Waits for so many characters; whether they came."""
        while len(self._text) - self._at < count:
            if self.ended:
                return False
            yield
        return True

    def until(self, markers: Sequence[str], emit: Emit) -> Steps[str]:
        """Passes on the text before the first of the markers, and reads that.

        Returns:
            The marker; nothing at the text's end.
        """
        pattern = _any_of(tuple(markers))
        while True:
            rest = self.rest
            found = pattern.search(rest)
            if found:
                if found.start():
                    emit(rest[: found.start()])
                self.skip(found.end())
                return found[0]
            held = 0 if self.ended else _beginning_at_end(rest, markers)
            certain = len(rest) - held
            if certain:
                emit(rest[:certain])
                self.skip(certain)
            if self.ended:
                return ""
            yield

    def literal(self, *options: str) -> Steps[str]:
        """Reads the longest of the options that comes next. Returns it; nothing if none of them does."""
        ordered = sorted(options, key=len, reverse=True)
        while True:
            rest = self.rest
            found = next((option for option in ordered if rest.startswith(option)), "")
            longer = [option for option in ordered if len(option) > len(found) and option.startswith(rest)]
            if self.ended or not longer:
                self.skip(len(found))
                return found
            yield

    def spaces(self) -> Steps[str]:
        """Reads white space. Returns it."""
        return (yield from self.matching(_SPACES))

    def matching(self, pattern: re.Pattern[str]) -> Steps[str]:
        """Reads the characters that a pattern of repeated characters matches. Returns them."""
        while True:
            found = pattern.match(self._text, self._at)
            size = found.end() - self._at if found else 0
            if self._at + size < len(self._text) or self.ended:
                text = self._text[self._at : self._at + size]
                self.skip(size)
                return text
            yield

    def json_value(self, emit: Emit) -> Steps[bool]:
        """Passes on the text of a JSON value as it comes. Returns whether its end came."""
        scan = JsonScan()
        while True:
            rest = self.rest
            used = scan.push(rest)
            if used:
                emit(rest[:used])
                self.skip(used)
            if scan.done:
                return True
            if self.ended:
                return scan.scalar
            yield

    def json_text(self) -> Steps[str | None]:
        """Reads a JSON value. Returns its text; None if its end did not come."""
        pieces: list[str] = []
        whole = yield from self.json_value(pieces.append)
        return "".join(pieces) if whole else None


class JsonScan:
    """Finds where a JSON value ends, of which pieces are pushed. Brackets are not told apart, nothing is validated."""

    def __init__(self) -> None:
        self.done = False
        self.scalar = False
        """Whether the value is a number or a word, which ends where something else begins."""
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._begun = False

    def push(self, text: str) -> int:
        """Number of the piece's characters that belong to the value."""
        at = 0
        while at < len(text) and not self.done:
            at = self._step(text, at)
        return at

    def _step(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        if self._in_string:
            return self._string(text, at)
        if not self._begun:
            self._begun = True
            self.scalar = text[at] not in '{["'
        if self.scalar:
            found = _AFTER_SCALAR.search(text, at)
            self.done = found is not None
            return found.start() if found else len(text)
        found = _OUTSIDE_STRING.search(text, at)
        if found is None:
            return len(text)
        if found[0] == '"':
            self._in_string = True
        else:
            self._depth += 1 if found[0] in "{[" else -1
            self.done = self._depth <= 0
        return found.end()

    def _string(self, text: str, at: int) -> int:
        found = _IN_STRING.search(text, at)
        if found is None:
            return len(text)
        if found[0] == "\\":
            self._escaped = True
        else:
            self._in_string = False
            self.done = self._depth == 0
        return found.end()


@cache
def _any_of(markers: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(markers, key=len, reverse=True))) or "(?!)")


def _beginning_at_end(text: str, markers: Sequence[str]) -> int:
    """Length of the longest beginning of a marker, less than the whole, that the text ends with."""
    longest = max(map(len, markers), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        tail = text[-size:]
        if any(marker.startswith(tail) for marker in markers):
            return size
    return 0
