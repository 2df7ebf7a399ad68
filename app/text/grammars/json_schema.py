"""JSON Schemas: what they allow, as grammars. What cannot be honoured is refused by its place, never ignored.

Every text that such a grammar allows is valid by its schema. It may allow less than the schema: numbers have a bounded
number of digits, whitespace is bounded, properties come in the schema's order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from app.text.grammars.grammar import Grammar
from app.text.grammars.schema_places import Place
from app.text.grammars.schema_reader import SchemaReader
from app.text.grammars.whitespace import BOUNDED

MAX_SCHEMA_BYTES: Final = 1 << 18
"""Most bytes of a schema, as it is handed to the engine."""
_ESCAPES: Final = 'nrbtf\\"'
"""Letters after a backslash in strings. No ``u``: a key has one spelling, so that none passes for another's."""


def json_schema(schema: Mapping[str, Any] | bool, *, param: str, whitespace: str = BOUNDED) -> Grammar:
    """The grammar of the JSON texts that are valid by a schema.

    Args:
        param: the client's name for the schema, for errors; a keyword's place follows it as a JSON pointer.
        whitespace: expression of what may stand, once, between two tokens of the JSON; empty: nothing.

    Raises:
        RequestError: 400, the schema is none, too large, or has what cannot be honoured.
    """
    return Grammar(f"start: {schema_rule(schema, param=param, whitespace=whitespace)}")


def check_schema(schema: Mapping[str, Any] | bool, *, param: str) -> None:
    """Refuses what :func:`json_schema` does, with the same errors."""
    schema_rule(schema, param=param)


def schema_rule(schema: Mapping[str, Any] | bool, *, param: str, whitespace: str = BOUNDED) -> str:
    """Lark text of a schema, ``%json {...}``, to stand in other rules. Raises as :func:`json_schema`."""
    place = Place(param)
    read = SchemaReader(schema, place).read()
    options: dict[str, Any] = {"json_allowed_escapes": _ESCAPES}
    options |= {"whitespace_pattern": whitespace} if whitespace else {"whitespace_flexible": False}
    text = json.dumps({"x-guidance": options, **read}, separators=(",", ":"), ensure_ascii=True)
    if len(text) > MAX_SCHEMA_BYTES:
        raise place.refusal(f"has more than {MAX_SCHEMA_BYTES} bytes")
    return f"%json {text}"
