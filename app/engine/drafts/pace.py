"""How many guesses a request is worth: by how many of its last ones were right."""

from __future__ import annotations

import math

_WEIGHT = 2.0
"""Guesses that the first estimate counts for."""
_FADING = 0.8
"""Weight of what was seen before a verification, when the next is added."""
_FIRST_PAUSE = 16
_LONGEST_PAUSE = 512
"""Tokens for which a request whose guesses are wrong is left alone, at first and at most."""


class Pace:
    """Estimate of one request's guesses, and its pauses.

    Args:
        first: share of them that is taken to be right until they say so themselves.
    """

    def __init__(self, first: float) -> None:
        self._first = first
        self._right, self._tried = first * _WEIGHT, _WEIGHT
        self._pause = _FIRST_PAUSE
        self._resumes_at = 0

    @property
    def rate(self) -> float:
        """Share of the guesses, up to the first wrong one of each row, that were right."""
        return self._right / self._tried

    def rests(self, num_tokens: int) -> bool:
        """Whether the request, which has so many tokens, is left alone."""
        return num_tokens < self._resumes_at

    def note(self, num_drafts: int, num_right: int) -> None:
        """Takes what a row found of its guesses, of which those behind the first wrong one say nothing."""
        self._right = self._right * _FADING + num_right
        self._tried = self._tried * _FADING + min(num_drafts, num_right + 1)
        if num_right:
            self._pause = _FIRST_PAUSE

    def most(self, least_chance: float) -> int:
        """Guesses in a row of which the last is still right with a chance of ``least_chance``."""
        if self.rate < least_chance:
            return 0
        return 1 << 10 if self.rate >= 1.0 else int(math.log(least_chance) / math.log(self.rate))

    def rest(self, num_tokens: int) -> None:
        """Leaves the request alone for a while, the longer the more often in a row, and begins anew then."""
        self._resumes_at = num_tokens + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._right, self._tried = self._first * _WEIGHT, _WEIGHT
