"""How much of a long text needs to be tokenised: none when it cannot fit, its end when only its last tokens count.

A text is gone through in pieces, because the tokens of one are in memory all at once, at some hundred bytes each. A cut
changes the tokens next to it and no others, at most as many as the longest token has bytes.
"""

from __future__ import annotations

from collections.abc import Callable

PIECE = 1 << 18
"""Characters that are tokenised at once to count them."""
FEW_CHARACTERS = 8
"""A text of no more characters for each allowed token is not counted in pieces. Few texts that fit are longer."""
_FOLDING = 4
"""Bytes that normalisation may turn into one. Compatibility forms of ASCII letters take four bytes in UTF-8."""

Count = Callable[[int, int], int]
"""Number of tokens of a text from one position to another."""


def most_characters(max_tokens: int, longest: int) -> int:
    """Characters from which on a text is too long whatever it says. Arguments as for :func:`exceeds`."""
    return _FOLDING * longest * max_tokens


def exceeds(size: int, max_tokens: int, count: Count, longest: int) -> bool:
    """Whether a text is certain to have more than ``max_tokens`` tokens.

    The answer can be wrong only for a text of which normalisation drops nearly everything.

    Args:
        size: characters of the text.
        max_tokens: most tokens that are allowed.
        count: number of tokens of a part of the text.
        longest: bytes of the longest token.
    """
    if size <= FEW_CHARACTERS * max_tokens:
        return False
    if size > most_characters(max_tokens, longest):
        return True
    if size <= PIECE:
        return False
    total = 0
    for start in range(0, size, PIECE):
        total += count(start, min(start + PIECE, size)) - longest
        if total > max_tokens:
            return True
    return False


def last_part(size: int, num_tokens: int, count: Count, longest: int) -> int:
    """Position from which on a text has to be tokenised to know its last ``num_tokens`` tokens.

    Arguments as for :func:`exceeds`.
    """
    if size <= PIECE:
        return 0
    start, total = size, 0
    while start > 0 and total <= num_tokens:
        end, start = start, max(0, start - PIECE)
        total += count(start, end) - longest
    return start
