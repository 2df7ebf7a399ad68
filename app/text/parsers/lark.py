"""Lark texts in llguidance's dialect, put together piece by piece."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from app.text.grammars.grammar import Grammar

_META = re.compile(r"[\\.+*?()|\[\]{}^$#&~/-]")
ANY_TEXT = r"(?s:.*)"
"""Regular expression of any text."""


_CHARACTERS_A_TOKEN = 4


class Tokens(Protocol):
    """What a grammar has to know of a tokenizer."""

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids of the control tokens, which are not text to a grammar."""

    def control_token_id(self, text: str) -> int | None:
        """Id of the control token with this text; None if there is none."""

    def token_id(self, text: str) -> int | None:
        """Id of the token with this text, control token or not; None if there is none."""


class Lark:
    """One grammar while it grows. Expressions are returned as text, for the rules that use them."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._rules: dict[str, str] = {}
        self._heads: dict[str, str] = {}
        self.parts: dict[str, str] = {}
        """Texts of further grammars, by the names that expressions have for them."""

    def text(self, text: str) -> str:
        """Exactly this text."""
        return json.dumps(text, ensure_ascii=False)

    def is_control(self, marker: str) -> bool:
        """Whether a marker is one control token."""
        return self._tokens.control_token_id(marker) is not None

    def marker(self, marker: str) -> str:
        """This marker, which may be a control token."""
        token_id = self._tokens.control_token_id(marker)
        return self.text(marker) if token_id is None else f"<[{token_id}]>"

    def rule(self, name: str, expression: str, options: str = "") -> str:
        """A rule of this name, or of one like it if that is taken by another."""
        return self._add(name, expression, f"[{options}]" if options else "")

    def terminal(self, name: str, expression: str) -> str:
        """A terminal, of regular expressions and texts alone."""
        return self._add(name.upper(), expression, "")

    def pattern(self, name: str, pattern: str) -> str:
        """A terminal that a regular expression matches; a slash in it has to be escaped."""
        return self.terminal(name, f"/{pattern}/")

    def text_until(self, name: str, closing: str, text: str = "") -> str:
        """A text and the closing marker, which it does not hold.

        Args:
            text: terminal for the text; any text if absent.
        """
        text = text or self.pattern("ANY", ANY_TEXT)
        if self.is_control(closing):
            return self.rule(name, f"{text} {self.marker(closing)}")
        return self.rule(name, self.terminal(name, f"{text} {self.text(closing)}"), "lazy")

    def bounded_until(self, name: str, closing: str, most_tokens: int) -> str:
        """A text of so many tokens at most, and the closing marker.

        The marker is told by its token. Where it is none, characters are counted instead, four for a token.
        """
        token_id = self._tokens.token_id(closing)
        if token_id is None:
            text = f"(?s:.){{0,{most_tokens * _CHARACTERS_A_TOKEN}}}"
            return self.rule(name, self.terminal(name, f"/{text}/ {self.text(closing)}"), "lazy")
        text = f"<[^{_ranges({token_id, *self._tokens.control_ids})}]>{{0,{most_tokens}}}"
        return self.rule(name, f"{text} <[{token_id}]>")

    def one_of(self, name: str, expressions: Sequence[str]) -> str:
        """A rule for any of the expressions."""
        return self.rule(name, " | ".join(expressions))

    def grammar(self, start: str) -> Grammar:
        """The whole."""
        lines = [f"{name}{self._heads[name]}: {body}" for name, body in self._rules.items()]
        return Grammar("\n".join([f"start: {start}", *lines, ""]), dict(self.parts))

    def _add(self, name: str, expression: str, head: str) -> str:
        wanted, number = name, 1
        while name in self._rules and (self._rules[name], self._heads[name]) != (expression, head):
            number += 1
            name = f"{wanted}_{number}"
        self._rules[name], self._heads[name] = expression, head
        return name


def escaped(text: str) -> str:
    """A regular expression of exactly this text."""
    return _META.sub(r"\\\g<0>", text).replace("\n", r"\n")


def _ranges(numbers: Iterable[int]) -> str:
    """Numbers as llguidance lists them, ``1-3,7``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
