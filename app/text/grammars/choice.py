"""A choice of texts, one of which the answer has to be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from app.errors import RequestError
from app.text.grammars.grammar import Grammar

MAX_CHOICES: Final = 4096
MAX_CHOICE_CHARS: Final = 1 << 16
"""Most characters of all choices together."""


def choice(texts: Sequence[str], *, param: str) -> Grammar:
    """The grammar of a few texts.

    Args:
        param: the client's name for them, for errors.

    Raises:
        RequestError: 400, there are none, too many, or something that is no text.
    """
    if not texts:
        raise RequestError(f"{param} is empty.", code="invalid_value", param=param)
    if len(texts) > MAX_CHOICES or sum(map(len, texts)) > MAX_CHOICE_CHARS:
        message = f"{param} has more than {MAX_CHOICES} choices, or more than {MAX_CHOICE_CHARS} characters."
        raise RequestError(message, code="invalid_value", param=param)
    # One terminal: as alternatives of a rule, a text that another begins with could end the other early.
    alternatives = " | ".join(literal(text, param=param) for text in dict.fromkeys(texts))
    return Grammar(f"start: CHOICE\nCHOICE: {alternatives}")


def literal(text: str, *, param: str) -> str:
    """Lark text of a string. Raises :class:`RequestError` 400 when it is no text."""
    if any(0xD800 <= ord(char) < 0xE000 for char in text):
        message = f"{param} has half of a surrogate pair, which is no text."
        raise RequestError(message, code="invalid_value", param=param)
    return json.dumps(text)
