"""Arguments that are written without JSON's quotes: what a schema says of how they are written, and what JSON they
become."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from app.errors import RequestError
from app.text.grammars.json_schema import schema_rule
from app.text.parsers.json_calls import loaded
from app.text.parsers.lark import Lark
from app.text.parsers.reader import Reader, Steps

_NOTES = frozenset(
    {"$comment", "default", "deprecated", "description", "example", "examples", "readOnly", "title", "writeOnly"}
)
"""Keywords that bind nothing."""
_DEFINITIONS = ("$defs", "definitions")
_OF_ARGUMENTS = _NOTES | {
    *_DEFINITIONS,
    "$schema",
    "$id",
    "additionalProperties",
    "properties",
    "required",
    "type",
    "strict",
}
_MOST_REFERENCES = 32
_KEY = re.compile(r"[^<>\s:{}\[\]\"',=()|]{1,128}")
"""Names of arguments that every format without JSON can write."""


def parameters(name: str, schema: Mapping[str, Any]) -> list[tuple[str, Any, bool]]:
    """The arguments of a tool, in the order of its schema: name, schema and whether it is required.

    Raises:
        RequestError: 400, a keyword binds arguments together, which a format without JSON cannot.
    """
    whole = resolved(schema, schema)
    if unknown := sorted(whole.keys() - _OF_ARGUMENTS):
        param = f"tools.{name}.parameters/{unknown[0]}"
        message = f"{param}: the keyword is not supported by this model's format of tool calls."
        raise RequestError(message, code="unsupported_parameter", param=param)
    properties: Mapping[str, Any] = whole.get("properties") or {}
    required: Sequence[str] = whole.get("required") or ()
    others = whole.get("additionalProperties", True)
    named = {**properties, **{key: others for key in required if key not in properties}}
    if unwritable := [key for key in named if not _KEY.fullmatch(key)]:
        param = f"tools.{name}.parameters/properties"
        message = f"{param}: this model's format of tool calls has no way to write the name {unwritable[0][:64]!r}."
        raise RequestError(message, code="unsupported_parameter", param=param)
    return [(key, with_definitions(each, schema), key in required) for key, each in named.items()]


def resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema, or that which it refers to."""
    for _ in range(_MOST_REFERENCES):
        if not isinstance(schema, Mapping):
            return {}
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        found: Any = root
        for step in reference[2:].split("/"):
            found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        schema = found
    return schema if isinstance(schema, Mapping) else {}


def with_definitions(schema: Any, root: Mapping[str, Any]) -> Any:
    """A part of a schema that can stand for itself: with the definitions that it may refer to."""
    definitions = {key: root[key] for key in _DEFINITIONS if key in root}
    return {**definitions, **schema} if isinstance(schema, Mapping) and definitions else schema


def only_notes(schema: Mapping[str, Any], keywords: set[str]) -> bool:
    """Whether a schema says nothing but by these keywords, of which it may lack some, but not all."""
    said = schema.keys() - _NOTES - {*_DEFINITIONS}
    return bool(said) and said <= keywords


def is_any(schema: Mapping[str, Any]) -> bool:
    """Whether a schema allows every value."""
    return not schema.keys() - _NOTES - {*_DEFINITIONS}


def is_plain_text(schema: Any) -> bool:
    """Whether a value is any string, null perhaps: such a one is written without quotes."""
    kinds = _plain_kinds(resolved(schema, schema if isinstance(schema, Mapping) else {}))
    return kinds is not None and "string" in kinds and kinds <= {"string", "null"}


def _plain_kinds(schema: Mapping[str, Any]) -> set[str] | None:
    """Types of which a schema allows every value; None if it says more than that."""
    keys = schema.keys() - _NOTES - {*_DEFINITIONS}
    if keys == {"type"}:
        kind = schema["type"]
        return {kind} if isinstance(kind, str) else set(kind) if isinstance(kind, list) else None
    if keys in ({"anyOf"}, {"oneOf"}) and isinstance(choices := schema[next(iter(keys))], list):
        each = [_plain_kinds(choice) if isinstance(choice, Mapping) else None for choice in choices]
        kinds: set[str] = set()
        for found in each:
            if found is None:
                return None
            kinds |= found
        return kinds
    return None


def text_choices(schema: Any) -> list[str] | None:
    """The strings of which a value is one; None if it may be anything else."""
    whole = resolved(schema, schema if isinstance(schema, Mapping) else {})
    keys = whole.keys() - _NOTES - {*_DEFINITIONS, "type"}
    if whole.get("type", "string") != "string" or keys not in ({"enum"}, {"const"}):
        return None
    choices = whole.get("enum", [whole.get("const")])
    return choices if isinstance(choices, list) and all(isinstance(choice, str) for choice in choices) else None


def bare_value(lark: Lark, schema: Any, closing: str, param: str, *, lead: str = "", tail: str = "") -> str:
    """Lark expression of a value, a string without quotes, and of what closes it.

    Args:
        closing: marker that closes it.
        param: how errors name it.
        lead, tail: texts before and behind the marker; a string holds the first itself.
    """
    end = f"{lark.marker(closing)} {lark.text(tail)}" if tail else lark.marker(closing)
    if is_plain_text(schema):
        until = lark.text_until("text", closing)
        return f"{until} {lark.text(tail)}" if tail else until
    before_end = f"{lark.text(lead)} {end}" if lead else end
    choices = text_choices(schema)
    if choices is not None and not any(closing in choice for choice in choices):
        return f"{lark.one_of('choice', [lark.text(choice) for choice in choices])} {before_end}"
    return f"{lark.rule('value', schema_rule(schema, param=param))} {before_end}"


def read_bare(reader: Reader, schema: Any, closing: str) -> Steps[str | None]:
    """Reads the text of a value, and the marker that closes it. Returns it; None if the marker did not come.

    JSON is read as such: a string in it may hold what looks like the marker.
    """
    pieces: list[str] = []
    if not is_plain_text(schema) and text_choices(schema) is None:
        yield from reader.spaces()
        yield from reader.have(1)
        if reader.rest.startswith(("{", "[", '"')) and not (yield from reader.json_value(pieces.append)):
            return None
    closed = yield from reader.until([closing], pieces.append)
    return "".join(pieces) if closed else None


def bare_json(text: str, schema: Any) -> str:
    """JSON of a value that was written without quotes if it is a string, by its schema."""
    if is_plain_text(schema):
        allows_null = "null" in (_plain_kinds(resolved(schema, schema)) or ())
        return "null" if allows_null and text.strip() == "null" else json.dumps(text, ensure_ascii=False)
    if (choices := text_choices(schema)) is not None:
        return json.dumps(text if text in choices else text.strip(), ensure_ascii=False)
    value = loaded(text.strip())
    if value is None and text.strip() != "null":
        return json.dumps(_PYTHON.get(text.strip(), text), ensure_ascii=False)
    return text.strip()


_PYTHON = {"True": True, "False": False, "None": None}


def in_sequence(lark: Lark, name: str, items: Sequence[tuple[str, bool]], separator: str = "") -> str:
    """Lark expression of items in their order, with a separator between them; those that are not required may miss.

    Args:
        items: expression, and whether it is required.
        separator: expression.
    """
    if not separator:
        return " ".join(item if required else f"({item})?" for item, required in items)
    first, later = "", ""
    for place, (item, required) in reversed(list(enumerate(items))):
        later_body = f"{separator} {item} {later}".strip()
        first_body = f"{item} {later}".strip()
        next_later = f"({later_body}) | {later}" if later and not required else later_body
        if not required and not later:
            next_later = f"({later_body})?"
        next_first = first_body if required else f"({first_body}) | {first}" if first else f"({first_body})?"
        later = lark.rule(f"{name}_later_{place}", next_later)
        first = lark.rule(f"{name}_first_{place}", next_first)
    return first
