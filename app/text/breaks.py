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


def broken(text: str, breaks: Sequence[int]) -> str:
    """The text with breaks put in, and one in the middle of whatever it has itself that looks like a break.

    Args:
        breaks: positions in the text, ascending.
    """
    breaks = _all_breaks(text, breaks)
    if not breaks:
        return text
    return BREAK.join(text[start:end] for start, end in itertools.pairwise([0, *breaks, len(text)]))


def offsets_without_breaks(text: str, breaks: Sequence[int], offsets: list[int]) -> list[int]:
    """Offsets in what :func:`broken` makes of a text and breaks, as those in the text."""
    inserted = len(BREAK)
    ends = [position + inserted * count for count, position in enumerate(_all_breaks(text, breaks), start=1)]
    return [offset - inserted * bisect.bisect_right(ends, offset) for offset in offsets] if ends else offsets


def _all_breaks(text: str, breaks: Sequence[int]) -> Sequence[int]:
    if BREAK not in text:
        return breaks
    return sorted({*breaks, *(match.start() + 1 for match in re.finditer(BREAK, text))})


def within(breaks: Sequence[int], start: int, end: int) -> list[int]:
    """Positions of the breaks in ``text[start:end]``, from its start on."""
    first, last = bisect.bisect_right(breaks, start), bisect.bisect_left(breaks, end)
    return [position - start for position in breaks[first:last]]
