"""Breaks: put inside a control token's text to keep it plain text; they take no part in the encoding otherwise."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Sequence

BREAK = "\ufdd0\ufdef"
"""Two noncharacters, which Unicode reserves for a program's own use.

A text that has them nevertheless keeps them, see :func:`broken`.
"""
_GUARDED_BREAK = BREAK[0] + BREAK + BREAK[1]
"""What :func:`broken` makes of a break that is part of a text: removing the break inside leaves it."""


def broken(text: str, breaks: Sequence[int]) -> str:
    """The text with breaks put in, and one in the middle of whatever it has itself that looks like a break.

    Args:
        breaks: positions in the text, ascending.
    """
    if BREAK in text:
        breaks = sorted({*breaks, *(match.start() + 1 for match in re.finditer(BREAK, text))})
    if not breaks:
        return text
    return BREAK.join(text[start:end] for start, end in itertools.pairwise([0, *breaks, len(text)]))


def offsets_without_breaks(text: str, offsets: list[int]) -> list[int]:
    """Offsets in what :func:`broken` made of a text without further breaks, as those in the text."""
    # A guarded break is two characters longer, the first of which stands before what the library leaves out.
    guards = [found.end() - 1 for found in re.finditer(_GUARDED_BREAK, text)]
    return [offset - 2 * bisect.bisect_right(guards, offset) for offset in offsets] if guards else offsets


def within(breaks: Sequence[int], start: int, end: int) -> list[int]:
    """Positions of the breaks in ``text[start:end]``, from its start on."""
    first, last = bisect.bisect_right(breaks, start), bisect.bisect_left(breaks, end)
    return [position - start for position in breaks[first:last]]
