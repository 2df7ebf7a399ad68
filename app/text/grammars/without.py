"""Words that an answer may not have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from app.errors import RequestError
from app.text.grammars.choice import literal
from app.text.grammars.grammar import Grammar

MAX_WORDS: Final = 256
MAX_WORD_CHARS: Final = 4096
"""Most characters of all words together."""


def without(words: Sequence[str], *, param: str) -> Grammar:
    """The grammar of any text that has none of some words in it, however its tokens spell them.

    Args:
        param: the client's name for them, for errors.

    Raises:
        RequestError: 400, one is empty or no text, or there are too many.
    """
    if not all(words):
        raise RequestError(f"{param} has an empty word.", code="invalid_value", param=param)
    if len(words) > MAX_WORDS or sum(map(len, words)) > MAX_WORD_CHARS:
        message = f"{param} has more than {MAX_WORDS} words, or more than {MAX_WORD_CHARS} characters."
        raise RequestError(message, code="invalid_value", param=param)
    bad = " | ".join(literal(word, param=param) for word in dict.fromkeys(words))
    return Grammar(f"start: TEXT\nTEXT: ANY & ~(ANY BAD ANY)\nANY: /(?s:.*)/\nBAD: {bad}")
