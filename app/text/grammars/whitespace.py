"""Whitespace in JSON: enough for every usual layout, so little that no model gets lost in it."""

from __future__ import annotations

import re
from typing import Final

from app.errors import RequestError

BOUNDED: Final = r" |\n[ \t]{0,20}"
"""Expression of what may stand between two tokens of a JSON text: a space, or a line's end and an indent."""
NONE: Final = ""
"""For JSON on one line without spaces."""
_BLANK: Final = r"(?: |\\[nrts]|\\x20|\\x0[9aAdD]|[\t\n\r]|\[(?: |\\[nrts]|[\t\n\r])+\])"
_QUANTIFIED: Final = re.compile(
    rf"(?:{_BLANK}|[()|]|\(\?:|(?<=[^*+?|(])[*+?]|(?<=[^*+?|(])\{{\d{{1,3}}(?:,\d{{0,3}})?\}})*"
)

_SPACES: Final = re.compile(r"\[[^\]]*\]|\\s")
_SPACE: Final = r"[ \t\n\r]"


def whitespace_pattern(pattern: str, *, param: str) -> str:
    """A client's own expression of it, which can match nothing else. Raises :class:`RequestError` 400 for others."""
    if len(pattern) > 256 or not _QUANTIFIED.fullmatch(pattern):
        message = f"{param} is an expression of spaces, \\n, \\r, \\t and \\s alone, of at most 256 characters."
        raise RequestError(message, code="invalid_value", param=param)
    return _SPACES.sub(
        lambda found: found.group().replace(r"\s", r" \t\n\r") if "[" in found.group() else _SPACE, pattern
    )
