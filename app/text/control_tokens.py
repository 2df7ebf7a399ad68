"""Control tokens in text: where they are spelt, and which of them a client had a part in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator


class ControlTokens:
    """The control tokens of one tokenizer, as text."""

    def __init__(self, tokens: Iterable[str]) -> None:
        # One character has no inside to put a break in.
        self.tokens = frozenset(token for token in tokens if len(token) > 1)
        self._beginnings = frozenset(token[:size] for token in self.tokens for size in range(1, len(token)))
        self._endings = frozenset(token[size:] for token in self.tokens for size in range(1, len(token)))
        self._longest = max(map(len, self.tokens), default=0)
        self._first_characters = _any_of({token[0] for token in self.tokens})
        self._possible_starts = _any_of(
            {case for token in self.tokens for case in (token[0], *token[0].lower(), *token[0].upper())}
        )

    def may_come_from(self, text: str) -> bool:
        """Whether the text has a character that a control token begins with, in any case.

        A text without one cannot become a control token by being cut or joined, unless the text before it ends with
        the beginning of one (see :meth:`beginning_at_end`).
        """
        return self._possible_starts.search(text) is not None

    def beginning_at_end(self, text: str) -> str:
        """The longest beginning of a control token, less than the whole, that the text ends with."""
        sizes = range(min(self._longest - 1, len(text)), 0, -1)
        return next((text[-size:] for size in sizes if text[-size:] in self._beginnings), "")

    def ending_at_start(self, text: str) -> str:
        """The longest ending of a control token, less than the whole, that the text starts with."""
        sizes = range(min(self._longest - 1, len(text)), 0, -1)
        return next((text[:size] for size in sizes if text[:size] in self._endings), "")

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Start and end of every control token spelt in the text, those that overlap included."""
        for match in self._first_characters.finditer(text):
            start = match.start()
            for end in range(start + 1, min(start + self._longest, len(text)) + 1):
                candidate = text[start:end]
                if candidate in self.tokens:
                    yield start, end
                if candidate not in self._beginnings:
                    break


def _any_of(characters: set[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(characters))) or "(?!)")
