"""Tries a ``tokenizer.json`` as the server will use it; run in a process that may die of it."""

from __future__ import annotations

import json
import string
from contextlib import suppress
from pathlib import Path

from app.text.tokenizer import Tokenizer, TokenizerError

_RUN = 48
"""Length of a run of one character: a pattern that backtracks without end takes longer than anybody waits."""
_TOKENS_PER_CHARACTER = 16
"""Most that is plausible; a character has up to four bytes, and a few have long compatibility decompositions."""
_WORDS = (
    "The quick brown fox's 1234567890 jumps: https://example.org/a_b-c?d=e  \n\n\t"
    "für 你好，世界 שלום नमस्ते 👩\u200d👧 e\u0301 \ufdd0"
)
_PROBE = _WORDS + "".join(f"{character * _RUN}\n" for character in string.printable)


def check(file: Path) -> None:
    """Loads a tokenizer, encodes a text with runs of every kind of character and decodes it again.

    JSON that is refused in words passes: it will be refused in the same words where it is to be used.

    Raises:
        Exception: it cannot encode text, or makes more tokens of it than it can have. What native code does on a
            hostile file may also be a panic, an abort, an endless loop or an allocation without end.
    """
    with suppress(UnicodeDecodeError, json.JSONDecodeError):
        json.loads(file.read_text(encoding="utf-8"))  # too deep for a stack, or too large for memory
    try:
        tokenizer = Tokenizer.load(file)
    except TokenizerError:
        return
    for parse_special in (False, True):
        ids = tokenizer.encode(_PROBE, parse_special=parse_special)
        if len(ids) > _TOKENS_PER_CHARACTER * len(_PROBE):
            raise TokenizerError(f"a text of {len(_PROBE)} characters becomes {len(ids)} tokens")
    tokenizer.decode(ids)
