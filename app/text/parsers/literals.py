"""Values in notations that are near to JSON: Python's, and that of Gemma, whose strings stand between marks of their
own and whose keys have no quotes."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.text.parsers.reader import Reader, Steps

MOST_DEPTH = 32
_SCALAR = re.compile(r"[^\s,\]})]+")
_KEY = re.compile(r"[^\s:\"'{}\[\],]+")
_SPACES = re.compile(r"\s*")
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}


class LiteralError(ValueError):
    """A text that is no value."""


@dataclass(frozen=True, slots=True)
class Notation:
    """How values are written."""

    quotes: tuple[str, ...]
    """Marks that a string stands between, the same on both sides."""
    escapes: bool
    """A backslash in a string takes the next character's meaning away."""
    words: Mapping[str, tuple[str, ...]]
    """Ways to write true, false and null, in JSON's words."""
    bare_keys: bool
    """Keys of objects have no quotes."""


PYTHON = Notation(
    ('"', "'"), True, {"true": ("True", "true"), "false": ("False", "false"), "null": ("None", "null")}, False
)


def marked(mark: str) -> Notation:
    """Gemma's notation, with the mark that its strings stand between."""
    return Notation((mark,), False, {word: (word,) for word in ("true", "false", "null")}, True)


def read_literal(reader: Reader, notation: Notation) -> Steps[str | None]:
    """Reads the text of a value, up to what ends it. Returns it; None if its end did not come."""
    pieces: list[str] = []
    depth = 0
    stops = [*notation.quotes, *"[]{}(),"]
    while True:
        found = yield from reader.until(stops, pieces.append)
        if not found:
            return None
        if found in notation.quotes:
            pieces.append(found)
            if not (yield from _string(reader, notation, found, pieces)):
                return None
        elif found in "[{(":
            depth += 1
            pieces.append(found)
        elif depth == 0:
            reader.skip(-len(found))
            return "".join(pieces)
        else:
            depth -= found != ","
            pieces.append(found)


def _string(reader: Reader, notation: Notation, quote: str, pieces: list[str]) -> Steps[bool]:
    stops = [quote, "\\"] if notation.escapes else [quote]
    while found := (yield from reader.until(stops, pieces.append)):
        pieces.append(found)
        if found == quote:
            return True
        if not (yield from reader.have(1)):
            return False
        pieces.append(reader.rest[0])
        reader.skip(1)
    return False


def literal_json(text: str, notation: Notation) -> str | None:
    """JSON of a value's text; None if it is no value."""
    try:
        value, at = _Literal(text, notation).value(0, 0)
    except (LiteralError, ValueError, SyntaxError):
        return None
    return json.dumps(value, ensure_ascii=False) if not text[at:].strip() else None


class _Literal:
    def __init__(self, text: str, notation: Notation) -> None:
        self._text, self._notation = text, notation

    def value(self, at: int, depth: int) -> tuple[Any, int]:
        """The value at a place, and where it ends."""
        if depth > MOST_DEPTH:
            raise LiteralError
        at = self._spaces(at)
        for quote in self._notation.quotes:
            if self._text.startswith(quote, at):
                return self._string(at, quote)
        if self._text.startswith("{", at):
            return self._object(at + 1, depth)
        if self._text.startswith("[", at):
            return self._items(at + 1, depth)
        found = _SCALAR.match(self._text, at)
        if not found:
            raise LiteralError
        word = found[0]
        return _WORDS[word] if word in _WORDS else json.loads(word), found.end()

    def _string(self, at: int, quote: str) -> tuple[str, int]:
        start = at + len(quote)
        if not self._notation.escapes:
            end = self._text.index(quote, start)
            return self._text[start:end], end + len(quote)
        end = start
        while not self._text.startswith(quote, end):
            end += 2 if self._text.startswith("\\", end) else 1
            if end >= len(self._text):
                raise LiteralError
        written = self._text[at : end + 1]
        if quote == '"':
            try:
                return json.loads(written, strict=False), end + 1
            except ValueError:
                pass
        value = ast.literal_eval(written.replace("\n", "\\n").replace("\r", "\\r"))
        return str(value), end + 1

    def _items(self, at: int, depth: int) -> tuple[list[Any], int]:
        items: list[Any] = []
        at = self._spaces(at)
        while not self._text.startswith("]", at):
            item, at = self.value(at, depth + 1)
            items.append(item)
            at = self._next(at, "]")
        return items, at + 1

    def _object(self, at: int, depth: int) -> tuple[dict[str, Any], int]:
        fields: dict[str, Any] = {}
        at = self._spaces(at)
        while not self._text.startswith("}", at):
            quoted = any(self._text.startswith(quote, at) for quote in self._notation.quotes)
            if quoted:
                key, at = self.value(at, depth + 1)
            else:
                found = _KEY.match(self._text, at)
                if not found:
                    raise LiteralError
                key, at = found[0], found.end()
            at = self._spaces(at)
            if not self._text.startswith(":", at):
                raise LiteralError
            fields[str(key)], at = self.value(at + 1, depth + 1)
            at = self._next(at, "}")
        return fields, at + 1

    def _next(self, at: int, closing: str) -> int:
        """Where the next item, or the closing bracket, is."""
        at = self._spaces(at)
        if self._text.startswith(",", at):
            return self._spaces(at + 1)
        if not self._text.startswith(closing, at):
            raise LiteralError
        return at

    def _spaces(self, at: int) -> int:
        found = _SPACES.match(self._text, at)
        return found.end() if found else at
