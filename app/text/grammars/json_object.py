"""Any JSON object."""

from __future__ import annotations

from typing import Any, Final

from app.text.grammars.grammar import Grammar
from app.text.grammars.json_schema import json_schema
from app.text.grammars.whitespace import BOUNDED

_TYPES: Final = ["null", "boolean", "number", "string", "array", "object"]
_ANY: Final[dict[str, Any]] = {"$ref": "#/$defs/any"}
# Said in full, and not left open, for its numbers to be bounded.
_OBJECT: Final[dict[str, Any]] = {
    "type": "object",
    "additionalProperties": _ANY,
    "$defs": {"any": {"type": _TYPES, "items": _ANY, "additionalProperties": _ANY}},
}


def json_object(*, param: str = "response_format", whitespace: str = BOUNDED) -> Grammar:
    """The grammar of all JSON objects, whatever is in them.

    Args:
        param: the client's name for the field that asks for it.
        whitespace: as for :func:`json_schema`.
    """
    return json_schema(_OBJECT, param=param, whitespace=whitespace)
