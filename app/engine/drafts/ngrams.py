"""Where a run of tokens stood before in a text, and what followed it there.

A hash table of n-grams leads to the latest place of each, and a chain from there to earlier ones: a token costs one
entry, a look-up a few comparisons, however long the text is.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_BITS = 20
"""Bits of a token that tell n-grams apart; tokens that share them are told apart when they are compared."""
_BREAK = (1 << _BITS) - 1
"""Stands between two texts; no vocabulary has a token of this number."""
_PLACES = 8
"""Places of an n-gram that are compared, latest first."""
_LONGEST = 32
"""Tokens beyond which two places are equally good."""


class Match(NamedTuple):
    """The end of a context, found in a text."""

    length: int
    """Tokens that are the same, at most 32."""
    token_ids: list[int]
    """Tokens that followed."""


class _Part:
    """A stretch of text with its n-grams."""

    def __init__(self, size: int) -> None:
        self.tokens = array("i")
        self.goes_on = True
        """Whether the text's end, so far, is that of this part."""
        self._size = size
        self._last: dict[int, int] = {}
        self._before = array("i")
        """For each token, the place before at which the n-gram that it ends stood; -1 where there is none."""
        self._key = 0
        self._mask = (1 << _BITS * size) - 1

    def append(self, token_ids: Iterable[int]) -> None:
        tokens, before, last, mask, key = self.tokens, self._before, self._last, self._mask, self._key
        least = self._size - 1
        for token_id in token_ids:
            key = (key << _BITS | token_id & _BREAK) & mask
            place = len(tokens)
            tokens.append(token_id)
            if place < least:
                before.append(-1)
                continue
            before.append(last.get(key, -1))
            last[key] = place
        self._key = key

    def find(self, context: Sequence[int], key: int, count: int) -> Match | None:
        """The longest match among the latest places; the latest of equals."""
        tokens, best, best_length = self.tokens, -1, self._size - 1
        place = self._last.get(key & self._mask, -1)
        for _ in range(_PLACES):
            if place < 0 or best_length == _LONGEST:
                break
            if place + 1 < len(tokens):  # something followed
                length = self._common(context, place)
                if length > best_length:
                    best, best_length = place, length
            place = self._before[place]
        return None if best < 0 else Match(best_length, self._following(best, count))

    def _common(self, context: Sequence[int], place: int) -> int:
        """Tokens that end the context and the text up to a place alike."""
        tokens, most = self.tokens, min(_LONGEST, place + 1, len(context))
        for length in range(most):
            if tokens[place - length] != context[-1 - length]:
                return length
        return most

    def _following(self, place: int, count: int) -> list[int]:
        """Tokens behind a place up to the end of its text; one that is still growing is taken to repeat itself."""
        tokens, start, following = self.tokens, place + 1, list[int]()
        for index in range(start, start + count):
            if index >= len(tokens) and not self.goes_on:
                break
            token_id = tokens[index] if index < len(tokens) else following[index - len(tokens)]
            if token_id == _BREAK:
                break
            following.append(token_id)
        return following


class NGramIndex:
    """The latest tokens of one text or several.

    Args:
        size: tokens of an n-gram: matches are at least as long.
        capacity: tokens that are remembered, at most; at least half as many are.
    """

    def __init__(self, size: int, capacity: int) -> None:
        self._size = size
        self._most = max(1, capacity // 2)
        self._part = _Part(size)
        self._older: _Part | None = None

    def append(self, token_ids: Sequence[int]) -> None:
        """Adds tokens to the end of the text."""
        while token_ids:
            room = self._most - len(self._part.tokens)
            if room <= 0:
                end = self._part.tokens[-min(_LONGEST, self._most - 1) :] if self._most > 1 else ()
                self._part.goes_on = False
                self._older, self._part = self._part, _Part(self._size)
                self._part.append(end)  # so that what goes on there is found
                continue
            self._part.append(token_ids[:room])
            token_ids = token_ids[room:]

    def end_text(self) -> None:
        """What is added from here on is another text."""
        self.append([_BREAK])

    def find(self, context: list[int], count: int) -> Match | None:
        """Where the end of a context stood, longest match first; None where it did not.

        Args:
            count: tokens behind it that are wanted, at most.
        """
        if len(context) < self._size or count < 1:
            return None
        key = 0
        for token_id in context[-self._size :]:
            key = key << _BITS | token_id & _BREAK
        found = self._part.find(context, key, count)  # the later text counts where both are as good
        older = None if self._older is None else self._older.find(context, key, count)
        if older is not None and (found is None or older.length > found.length):
            return older
        return found
