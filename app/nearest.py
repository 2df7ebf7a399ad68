"""Names that somebody may have meant who wrote another one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 200
"""Characters of a name that are compared: the time this takes grows with their square."""
_MOST = 3


def nearest(name: str, known: Iterable[str], *, likeness: float = 0.6) -> list[str]:
    """Those of ``known`` that are spelled much like ``name``, the nearest first; at most three.

    Args:
        likeness: share of the characters that two names have to have in common, in order; from 0 to 1.
    """
    by_folded = {each.casefold(): each for each in known}
    found = difflib.get_close_matches(name[:_LONGEST].casefold(), by_folded, n=_MOST, cutoff=likeness)
    return [by_folded[each] for each in found]


def did_you_mean(name: str, known: Iterable[str], *, likeness: float = 0.6) -> str:
    """`` (did you mean X or Y?)``, to go behind what is said of an unknown name; empty where nothing is near."""
    found = nearest(name, known, likeness=likeness)
    return f" (did you mean {' or '.join(found)}?)" if found else ""
