"""Which options of a JSON Schema's ``oneOf`` exclude each other: there one of them is the same as any of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from app.text.grammars.schema_places import Place
from app.text.grammars.schema_refs import resolve, target

_ALL_TYPES: Final = frozenset({"null", "boolean", "number", "string", "array", "object"})
_MAX_OPTIONS: Final = 64
_MAX_LOOKS: Final = 8000
"""Most pairs that are looked at for one schema."""
_MAX_DEPTH: Final = 6


def split_one_of(schema: dict[str, Any], disjoint: Disjoint, place: Place) -> None:
    """Writes a schema's ``oneOf`` as the ``anyOf`` that it is. Raises :class:`RequestError` 400 when it may be none."""
    options = schema["oneOf"]
    if len(options) > _MAX_OPTIONS:
        raise place.at("oneOf").refusal(f"has more than {_MAX_OPTIONS} options")
    for index, option in enumerate(options):
        if not all(disjoint.check(option, other) for other in options[:index]):
            why = "is supported where a type, a constant or a required property tells the options apart; use anyOf"
            raise place.unsupported("oneOf", why)
    if "anyOf" in schema:
        del schema["oneOf"]
        schema["allOf"] = [*schema.get("allOf", ()), {"anyOf": options}]
    else:
        renamed = {"anyOf" if keyword == "oneOf" else keyword: value for keyword, value in schema.items()}
        schema.clear()
        schema.update(renamed)


class Disjoint:
    """Tells which schemas, as written, exclude each other. What takes too much work to tell is not told apart."""

    def __init__(self, root: Any, defs: Mapping[str, Any]) -> None:
        self._root = root
        self._defs = defs
        self._looks = 0

    def check(self, one: Any, other: Any, depth: int = _MAX_DEPTH) -> bool:
        """Whether no value is known to be valid by both."""
        self._looks += 1
        if self._looks > _MAX_LOOKS:
            return False
        one, other = (resolve(each, self._root, self._defs) for each in (one, other))
        if one is False or other is False:
            return True
        if not isinstance(one, Mapping) or not isinstance(other, Mapping) or depth == 0:
            return False
        for narrower, wider in ((one, other), (other, one)):
            for part in self._parts(narrower):
                if all(self.check(each, wider, depth - 1) for each in part):
                    return True
        if not _types(one) & _types(other):
            return True
        values = [_values(each) for each in (one, other)]
        if values[0] is not None and values[1] is not None:
            return not any(_same(first, second) for first in values[0] for second in values[1])
        if _types(one) & _types(other) == {"number"}:
            return _above(one, other) or _above(other, one)
        return _types(one) & _types(other) == {"object"} and self._differ(one, other, depth)

    def _parts(self, schema: Mapping[str, Any]) -> list[list[Any]]:
        """Lists of schemas: a value of ``schema`` is one of a schema of each list."""
        parts = [[each] for each in schema.get("allOf", ())]
        parts += [schema[choice] for choice in ("anyOf", "oneOf") if choice in schema]
        if "$ref" in schema:
            parts.append([target(schema["$ref"], self._root, self._defs)])
        return parts

    def _differ(self, one: Mapping[str, Any], other: Mapping[str, Any], depth: int) -> bool:
        """Whether a property that has to be there tells two schemas of objects apart."""
        required = (set(one.get("required", ())), set(other.get("required", ())))
        for name in required[0] | required[1]:
            if "patternProperties" in one or "patternProperties" in other:
                continue
            schemas = [
                each.get("properties", {}).get(name, each.get("additionalProperties", True)) for each in (one, other)
            ]
            if self.check(schemas[0], schemas[1], depth - 1):
                return True
        return False


def _types(schema: Mapping[str, Any]) -> frozenset[str]:
    values = _values(schema)
    if values is not None:
        return frozenset(map(_type_of, values))
    named = schema.get("type", _ALL_TYPES)
    types = {named} if isinstance(named, str) else set(named)
    return frozenset("number" if each == "integer" else each for each in types)


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _values(schema: Mapping[str, Any]) -> list[Any] | None:
    """All values that a schema can have; None: they are not counted up."""
    if "const" in schema:
        return [schema["const"]]
    values: list[Any] | None = schema.get("enum")
    return values


def _same(one: Any, other: Any) -> bool:
    return _type_of(one) == _type_of(other) and bool(one == other)


def _above(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether all numbers of one schema are above all of the other."""
    low = one.get("exclusiveMinimum", one.get("minimum"))
    high = other.get("exclusiveMaximum", other.get("maximum"))
    if low is None or high is None:
        return False
    is_open = "exclusiveMinimum" in one or "exclusiveMaximum" in other
    return bool(low > high or (is_open and low == high))
