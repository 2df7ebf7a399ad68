"""Grammars that clients write in Lark's notation, or in one that is found to be GBNF."""

from __future__ import annotations

import re
from typing import Final

from app.errors import RequestError
from app.text.grammars.gbnf import gbnf
from app.text.grammars.grammar import Grammar

MAX_CHARS: Final = 1 << 16
_START: Final = re.compile(r"^[ \t]*(?:%llguidance\b|[?!]?start[ \t]*(?:\[[^\]\n]*\])?[ \t]*:(?!:=))", re.MULTILINE)
_OPTIONS: Final = re.compile(r"^[ \t]*[?!]?[A-Za-z_][\w-]*[ \t]*\[([^\]\n]*)\][ \t]*:", re.MULTILINE)
# They change what was sampled, or how, behind the engine's back.
_REFUSED: Final = re.compile(r"\b(stop|max_tokens|temperature)\b[ \t]*=")


def lark(text: str, *, param: str) -> Grammar:
    """The grammar that a Lark text with a rule ``start`` describes, in llguidance's dialect.

    Args:
        param: the client's name for it, for errors.

    Raises:
        RequestError: 400, the text has no such rule, is too long, or has options that cannot be honoured. Whether the
            rest of it is sound only its compilation shows.
    """
    if len(text) > MAX_CHARS:
        message = f"{param}: the grammar has more than {MAX_CHARS} characters."
        raise RequestError(message, code="invalid_value", param=param)
    if not _START.search(text):
        raise RequestError(f"{param}: the grammar has no rule start.", code="invalid_value", param=param)
    for options in _OPTIONS.findall(text):
        if refused := _REFUSED.search(options):
            message = f"{param}: a rule's option {refused.group(1)} is not supported."
            raise RequestError(message, code="unsupported_parameter", param=param)
    return Grammar(text)


def ebnf(text: str, *, param: str) -> Grammar:
    """The grammar that a text describes in whichever of the notations that servers take under one name: Lark's, or
    GBNF, as which xgrammar's EBNF is read. Raises likewise.
    """
    if "::=" in text and not _START.search(text):
        return gbnf(text, param=param)
    return lark(text, param=param)
