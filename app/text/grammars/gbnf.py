"""GBNF, llama.cpp's notation of grammars, and the part of xgrammar's EBNF that is the same.

Rules that do not lead back to themselves become terminals, which the engine reads as expressions; it takes the longest
text for each, as if what follows it began with other characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from app.errors import RequestError
from app.text.grammars.grammar import Grammar

MAX_CHARS: Final = 1 << 16
MAX_RULES: Final = 2000
_MAX_DEPTH: Final = 50
_MAX_REPEATS: Final = 100_000
_ROOT: Final = "root"

_BLANK: Final = re.compile(r"(?:\s|#[^\n]*)*")
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_DEFINES: Final = re.compile(r"(?:\s|#[^\n]*)*::=")
_REPEATS: Final = re.compile(r"\{\s*(\d{1,6})\s*(,?)\s*(\d{0,6})\s*\}")
_CODE: Final = re.compile(r"x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}")
_ESCAPED: Final[Mapping[str, str]] = {"n": "\n", "r": "\r", "t": "\t"} | {char: char for char in "\\\"'[]-^/"}
_BEYOND: Final[Mapping[str, str]] = {"<": "a token", "!": "a negated token", "(=": "a look at what follows"}


class _SyntaxError(Exception):
    """A text that is no grammar, or not one that can be honoured; the message says where and why."""


@dataclass(slots=True)
class _Rule:
    name: str
    body: list[str] = field(default_factory=list)
    """Lark text, with a reference to the rule ``name`` as ``\\0name\\0``."""
    references: set[str] = field(default_factory=set)
    is_terminal: bool = False


def gbnf(text: str, *, param: str) -> Grammar:
    """The grammar of the texts that a rule ``root`` allows.

    Args:
        param: the client's name for it, for errors.

    Raises:
        RequestError: 400, the text is no such grammar, or uses what cannot be honoured.
    """
    try:
        rules = _Reader(text).read()
        _mark_terminals(rules)
    except _SyntaxError as error:
        raise RequestError(f"{param}: {error}.", code="invalid_value", param=param) from None
    names = {name: ("T" if rule.is_terminal else "r") + str(index) for index, (name, rule) in enumerate(rules.items())}
    lines = [f"start: {names[_ROOT]}"]
    for name, rule in rules.items():
        parts = "".join(rule.body).split("\0")
        body = "".join(names[part] if index % 2 else part for index, part in enumerate(parts))
        lines.append(f"{names[name]}: {body}")
    return Grammar("\n".join(lines))


class _Reader:
    def __init__(self, text: str) -> None:
        if len(text) > MAX_CHARS:
            raise _SyntaxError(f"the grammar has more than {MAX_CHARS} characters")
        self._text = text
        self._at = 0
        self._rules: dict[str, _Rule] = {}

    def read(self) -> dict[str, _Rule]:
        """All rules, in their order."""
        self._skip()
        while self._at < len(self._text):
            name = self._taken(_NAME, "a rule's name")
            self._taken(_DEFINES, "::=")
            if name in self._rules:
                raise self._error(f"rule {name} is there twice")
            if len(self._rules) == MAX_RULES:
                raise self._error(f"there are more than {MAX_RULES} rules")
            rule = self._rules[name] = _Rule(name)
            self._skip()
            self._alternatives(rule, 0)
            if self._at < len(self._text) and not self._at_rule():
                raise self._error("this belongs to no rule")
        if _ROOT not in self._rules:
            raise _SyntaxError(f"the grammar has no rule {_ROOT}")
        for rule in self._rules.values():
            for name in sorted(rule.references - self._rules.keys()):
                raise _SyntaxError(f"rule {rule.name} needs {name}, which is not there")
        return self._rules

    def _alternatives(self, rule: _Rule, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise self._error(f"groups are nested more than {_MAX_DEPTH} deep")
        self._sequence(rule, depth)
        while self._text.startswith("|", self._at):
            self._at += 1
            self._skip()
            rule.body.append(" | ")
            self._sequence(rule, depth)

    def _sequence(self, rule: _Rule, depth: int) -> None:
        items = 0
        while self._at < len(self._text) and self._text[self._at] not in "|)" and not self._at_rule():
            rule.body.append(" " if items else "")
            self._item(rule, depth)
            self._repetition(rule)
            items += 1
        if not items:
            rule.body.append('""')

    def _item(self, rule: _Rule, depth: int) -> None:
        char = self._text[self._at]
        for sign, what in _BEYOND.items():
            if self._text.startswith(sign, self._at):
                raise self._error(f"{what} is not supported")
        if char == '"':
            rule.body.append(json.dumps(self._literal()))
        elif char == "[":
            rule.body.append(self._class())
        elif char == ".":
            self._at += 1
            rule.body.append("/(?s:.)/")
        elif char == "(":
            self._at += 1
            self._skip()
            rule.body.append("(")
            self._alternatives(rule, depth + 1)
            if not self._text.startswith(")", self._at):
                raise self._error("a group has no end")
            self._at += 1
            rule.body.append(")")
        else:
            name = self._taken(_NAME, "a text, a class, a group or a rule's name")
            rule.references.add(name)
            rule.body.append(f"\0{name}\0")
        self._skip()

    def _repetition(self, rule: _Rule) -> None:
        if self._at < len(self._text) and self._text[self._at] in "*+?":
            rule.body.append(self._text[self._at])
            self._at += 1
        elif found := _REPEATS.match(self._text, self._at):
            least, comma, most = found.groups()
            if max(int(least), int(most or 0)) > _MAX_REPEATS or (most and (not comma or int(most) < int(least))):
                raise self._error("these numbers of repetitions cannot be")
            rule.body.append("{" + least + comma + most + "}")
            self._at = found.end()
        else:
            return
        self._skip()
        if self._at < len(self._text) and self._text[self._at] in "*+?{":
            raise self._error("what is repeated twice needs a group")

    def _literal(self) -> str:
        self._at += 1
        chars: list[str] = []
        while not self._text.startswith('"', self._at):
            chars.append(self._char("a text has no end"))
        self._at += 1
        return "".join(chars)

    def _class(self) -> str:
        self._at += 1
        negated = self._text.startswith("^", self._at)
        self._at += negated
        ranges: list[str] = []
        while not self._text.startswith("]", self._at):
            first = last = self._char("a class has no end")
            if self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at):
                self._at += 1
                last = self._char("a class has no end")
                if last < first:
                    raise self._error("a range of characters ends before it begins")
            ranges.append(f"\\u{{{ord(first):x}}}" + (f"-\\u{{{ord(last):x}}}" if last != first else ""))
        self._at += 1
        if not ranges:
            raise self._error("a class is empty")
        return f"/[{'^' if negated else ''}{''.join(ranges)}]/"

    def _char(self, missing: str) -> str:
        char = self._text[self._at : self._at + 1]
        self._at += 1
        if char == "\\":
            code = _CODE.match(self._text, self._at)
            if code is None:
                escaped = self._text[self._at : self._at + 1]
                if escaped not in _ESCAPED:
                    raise self._error(f"\\{escaped} is no escape")
                self._at += 1
                return _ESCAPED[escaped]
            self._at = code.end()
            point = int(code.group()[1:], 16)
            if point > 0x10FFFF:
                raise self._error("an escape names no character")
            char = chr(point)
        if not char:
            raise self._error(missing)
        if 0xD800 <= ord(char) < 0xE000:
            raise self._error("half of a surrogate pair is no character")
        return char

    def _at_rule(self) -> bool:
        name = _NAME.match(self._text, self._at)
        return name is not None and _DEFINES.match(self._text, name.end()) is not None

    def _skip(self) -> None:
        found = _BLANK.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _taken(self, expression: re.Pattern[str], what: str) -> str:
        found = expression.match(self._text, self._at)
        if found is None:
            raise self._error(f"{what} is missing")
        self._at = found.end()
        return found.group()

    def _error(self, why: str) -> _SyntaxError:
        line = self._text.count("\n", 0, self._at) + 1
        return _SyntaxError(f"line {line}: {why}")


def _mark_terminals(rules: Mapping[str, _Rule]) -> None:
    """Marks the rules that lead to no recursion."""
    users: dict[str, list[str]] = {name: [] for name in rules}
    for name, rule in rules.items():
        for used in rule.references:
            users[used].append(name)
    open_references = {name: len(rule.references) for name, rule in rules.items()}
    done: Sequence[str] = [name for name, count in open_references.items() if not count]
    while done:
        following: list[str] = []
        for name in done:
            rules[name].is_terminal = True
            for user in users[name]:
                open_references[user] -= 1
                if not open_references[user]:
                    following.append(user)
        done = following
