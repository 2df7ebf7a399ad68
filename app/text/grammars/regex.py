"""Regular expressions that the whole answer has to match."""

from __future__ import annotations

from app.errors import RequestError
from app.text.grammars.grammar import Grammar
from app.text.grammars.patterns import PatternError, matched


def regex(pattern: str, *, param: str) -> Grammar:
    """The grammar of the texts that an expression matches from their beginning to their end.

    Args:
        param: the client's name for it, for errors.

    Raises:
        RequestError: 400, the expression cannot be honoured.
    """
    return Grammar(f"start: {regex_terminal(pattern, param=param)}")


def regex_terminal(pattern: str, *, param: str) -> str:
    """Lark text of an expression, for use in other rules. Raises likewise."""
    try:
        translated = matched(pattern)
    except PatternError as error:
        raise RequestError(f"{param}: the expression {error}.", code="invalid_value", param=param) from None
    if not translated:
        return '""'
    return "/" + translated.replace("/", r"\/") + "/"
