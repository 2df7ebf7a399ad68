"""Requests whose forms are made to cost a server dear: a kind a name, each request of a kind another one."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

Body = dict[str, Any]
Maker = Callable[[int], Body]


def _schema(schema: dict[str, Any]) -> Body:
    return {"structured_outputs": {"json": schema}}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _nested(number: int, depth: int) -> Body:
    schema: dict[str, Any] = {"const": number}
    for level in range(depth):
        schema = _object(**{f"p{number}": schema}) if level % 2 else {"type": "array", "items": schema, "minItems": 1}
    return _schema(schema)


def _deep(number: int) -> Body:
    return _nested(number, 56)


def _too_deep(number: int) -> Body:
    return _nested(number, 400)


def _cyclic(number: int) -> Body:
    """Definitions that refer to each other in every way, none of them necessarily."""
    names = [f"d{number}_{index}" for index in range(24)]
    references = [{"$ref": f"#/$defs/{name}"} for name in names]
    node = {"type": "object", "properties": {name: {"anyOf": references} for name in names}}
    return _schema({"$defs": dict.fromkeys(names, node), "$ref": f"#/$defs/{names[0]}"})


def _endless(number: int) -> Body:
    """A schema that needs itself: no answer ends."""
    return _schema({"$defs": {"a": _object(**{f"n{number}": {"$ref": "#/$defs/a"}})}, "$ref": "#/$defs/a"})


def _doubling(number: int) -> Body:
    """Each definition holds the next one twice."""
    names = [f"d{index}" for index in range(40)]
    definitions = {
        name: _object(a={"$ref": f"#/$defs/{following}"}, b={"$ref": f"#/$defs/{following}"})
        for name, following in itertools.pairwise(names)
    }
    return _schema({"$defs": {**definitions, names[-1]: {"const": number}}, "$ref": f"#/$defs/{names[0]}"})


def _huge_enum(number: int) -> Body:
    chance = random.Random(number)
    return _schema({"enum": [f"{chance.getrandbits(64):016x}" for _ in range(9_000)]})


def _optional(number: int) -> Body:
    """Properties of which any may be left out."""
    properties = {f"p{number}_{index}": {"type": "string"} for index in range(240)}
    return _schema({"type": "object", "properties": properties, "additionalProperties": False})


def _many_items(number: int) -> Body:
    return _schema({"type": "array", "items": {"const": number}, "minItems": 1_000_000 - number % 1000})


def _regex(pattern: str) -> Maker:
    return lambda number: {"structured_outputs": {"regex": f"{pattern}|n{number}"}}


def _ambiguous(number: int) -> Body:
    return {"structured_outputs": {"grammar": f'start: a\na: a a | a a a | "x" | "n{number}"'}}


KINDS: dict[str, Maker] = {
    "deep": _deep,
    "too_deep": _too_deep,
    "cyclic": _cyclic,
    "endless": _endless,
    "doubling": _doubling,
    "huge_enum": _huge_enum,
    "optional": _optional,
    "many_items": _many_items,
    "regex_nested_counts": _regex("((a{1,1000}){1,1000}){1,1000}"),
    "regex_nested_stars": _regex("((x+x+)+y|(x*)*z)*"),
    "regex_many_states": _regex("[ab]*a[ab]{18}"),
    "regex_overlaps": _regex("(.*a){24}"),
    "ambiguous": _ambiguous,
}


def hostile(number: int) -> tuple[str, Body]:
    """The kind and the body of the request of that number; no two numbers have equal forms."""
    kinds = list(KINDS)
    kind = kinds[number % len(kinds)]
    return kind, KINDS[kind](number)
