"""Reads a JSON Schema of any draft and writes it as llguidance enforces it wholly, or refuses it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Final

from app.text.grammars.patterns import PatternError, searched
from app.text.grammars.schema_disjoint import Disjoint, split_one_of
from app.text.grammars.schema_places import Place
from app.text.grammars.schema_productive import check_finite
from app.text.grammars.schema_refs import References
from app.text.grammars.schema_values import (
    COUNTS,
    FRACTION,
    NUMBERS,
    check_text,
    multiples_overflow,
    read_bounds,
    read_constant,
    read_count,
    read_multiple,
)

MAX_DEPTH: Final = 60
"""Deepest nesting of schemas."""
MAX_SCHEMAS: Final = 2000
"""Most schemas within one, properties' among them."""
MAX_VALUES: Final = 10_000
"""Most values of all enumerations together."""
TYPES: Final = ("null", "boolean", "integer", "number", "string", "array", "object")

_FORMATS: Final = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)
_FORMAT_HINTS: Final = frozenset({"password", "textarea", "color-hint", "multiline"})
"""Formats that say how a form shows a string, not what is in it."""
_INT32: Final = {"minimum": -(2**31), "maximum": 2**31 - 1}
# Keywords that no grammar here enforces, with the values that bind nothing.
_UNSUPPORTED: Final[Mapping[str, tuple[Any, ...]]] = {
    "$dynamicRef": (),
    "$recursiveRef": (),
    "contains": (),
    "dependencies": ({},),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "disallow": (),
    "divisibleBy": (),
    "else": (),
    "extends": (),
    "if": (),
    "maxContains": (),
    "minContains": (),
    "not": (False,),
    "propertyNames": (True, {}),
    "then": (),
    "unevaluatedItems": (True, {}),
    "unevaluatedProperties": (True, {}),
    "uniqueItems": (False,),
}
_IMPLIED: Final[Mapping[str, frozenset[str]]] = {
    "object": frozenset({"properties", "patternProperties", "additionalProperties", "required", "minProperties"})
    | {"maxProperties"},
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "string": frozenset({"pattern", "format", "minLength", "maxLength"}),
    "number": NUMBERS,
}
_IN_PLACE: Final = frozenset({"$ref", "const", "enum", "allOf", "anyOf", "oneOf"})


class SchemaReader:
    """One schema's reading."""

    def __init__(self, schema: Mapping[str, Any] | bool, place: Place) -> None:
        self._root = schema
        self._place = place
        self._references = References(schema, place)
        self._num_schemas = 0
        self._num_values = 0
        self._multiples: set[int | float] = set()
        self._numbers: list[dict[str, Any]] = []
        """Schemas of numbers, as written, that do not bound the digits behind the point."""
        self._one_ofs: list[tuple[dict[str, Any], Place]] = []
        self._keywords: Mapping[str, Callable[[Any, Place, int], Any]] = {
            "$ref": lambda value, place, _: self._references.name(value, place),
            "const": lambda value, place, _: self._constants([value], place)[0],
            "enum": lambda value, place, _: self._constants(value, place),
            "allOf": self._schemas,
            "anyOf": self._schemas,
            "oneOf": self._schemas,
            "properties": self._properties,
            "patternProperties": self._pattern_properties,
            "additionalProperties": self._schema,
            "prefixItems": self._schemas,
            "items": self._schema,
            "required": _names,
            "pattern": _pattern,
        }

    def read(self) -> dict[str, Any]:
        """The schema as llguidance is given it. Raises :class:`RequestError` 400."""
        root = self._schema(self._root, self._place, 0)
        if root is False:
            raise self._place.refusal("allows no value")
        written = {"anyOf": [True]} if root is True else root
        defs: dict[str, Any] = {}
        for name, target, place in self._references:
            defs[name] = self._schema(target, place, 0)
        check_finite(written, defs, self._place)
        disjoint = Disjoint(written, defs)
        for schema, place in self._one_ofs:
            split_one_of(schema, disjoint, place)
        if not self._multiples:  # llguidance multiplies those of schemas that it merges, in 32 bits
            for schema in self._numbers:
                schema.update(FRACTION)
            _share(self._numbers, defs)
        elif multiples_overflow(self._multiples):
            raise self._place.refusal("has values of multipleOf that cannot be enforced together")
        return {**written, "$defs": defs} if defs else dict(written)

    def _schema(self, schema: Any, place: Place, depth: int) -> dict[str, Any] | bool:
        self._num_schemas += 1
        if not isinstance(schema, Mapping | bool):
            raise place.refusal("is no JSON Schema: neither an object nor a boolean")
        if depth > MAX_DEPTH:
            raise place.refusal(f"is nested more than {MAX_DEPTH} schemas deep")
        if self._num_schemas > MAX_SCHEMAS:
            raise self._place.refusal(f"has more than {MAX_SCHEMAS} schemas")
        if isinstance(schema, bool):
            return schema
        given = _modern(schema)
        _check_supported(given, place)
        types = _types(given, place)
        written: dict[str, Any] = {}
        for keyword, value in given.items():
            if keyword == "type":
                written["type"] = sorted(types, key=TYPES.index) if len(types) != 1 else next(iter(types))
            elif keyword in COUNTS:
                written[keyword] = read_count(value, place.at(keyword))
            elif keyword == "multipleOf":
                written[keyword] = read_multiple(value, place.at(keyword))
                self._multiples.add(written[keyword])
            elif keyword == "format":
                written.update(_format(value, types, place))
            elif keyword in self._keywords:
                written[keyword] = self._keywords[keyword](value, place.at(keyword), depth + 1)
        if "type" not in written and (implied := _implied_type(given.keys())):
            types = frozenset({implied})
            written["type"] = implied
        self._bound_numbers(given, written, types, place)
        if not written:
            return True
        _check_map(written, place)
        if "oneOf" in written:
            self._one_ofs.append((written, place))
        return written

    def _bound_numbers(
        self, given: Mapping[str, Any], written: dict[str, Any], types: frozenset[str], place: Place
    ) -> None:
        if "const" in given or "enum" in given:  # they bound themselves
            types = frozenset()
        for keyword, bound in read_bounds(given, types, place).items():
            written.setdefault(keyword, bound)
        if "number" in types:
            self._numbers.append(written)

    def _schemas(self, schemas: Any, place: Place, depth: int) -> list[dict[str, Any] | bool]:
        if not isinstance(schemas, list) or not schemas:
            raise place.refusal("is no list of schemas")
        return [self._schema(each, place.at(index), depth) for index, each in enumerate(schemas)]

    def _properties(self, schemas: Any, place: Place, depth: int) -> dict[str, dict[str, Any] | bool]:
        if not isinstance(schemas, Mapping):
            raise place.refusal("is no object of schemas")
        return {check_text(name, place): self._schema(each, place.at(name), depth) for name, each in schemas.items()}

    def _pattern_properties(self, schemas: Any, place: Place, depth: int) -> dict[str, dict[str, Any] | bool]:
        read = self._properties(schemas, place, depth)
        return {_pattern(pattern, place.at(pattern), depth): schema for pattern, schema in read.items()}

    def _constants(self, values: Any, place: Place) -> list[Any]:
        if not isinstance(values, list) or not values:
            raise place.refusal("is no list of values")
        self._num_values += len(values)
        if self._num_values > MAX_VALUES:
            raise place.refusal(f"makes more than {MAX_VALUES} values of all enumerations")
        return [read_constant(each, place) for each in values]


def _share(schemas: Sequence[dict[str, Any]], defs: dict[str, Any]) -> None:
    """Writes equal schemas once, as compiling one of a number takes a millisecond."""
    first: dict[str, str] = {}
    for schema in schemas:
        if _IN_PLACE.isdisjoint(schema) and schema["type"] == "number":
            text = json.dumps(schema, sort_keys=True)
            if text not in first:
                first[text] = f"n{len(first)}"
                defs[first[text]] = dict(schema)
            schema.clear()
            schema["$ref"] = f"#/$defs/{first[text]}"


def _modern(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema's keywords, those of older drafts as the newest has them."""
    given = dict(schema)
    if isinstance(given.get("items"), list):
        rest = given.pop("additionalItems", True)
        prefix = given.pop("items")
        given |= {"prefixItems": prefix, "items": rest} if prefix else {"items": rest}
    return given


def _check_supported(given: Mapping[str, Any], place: Place) -> None:
    """Raises :class:`RequestError` 400 for a keyword that cannot be enforced."""
    if given.get("uniqueItems") is True and given.get("maxItems") in (0, 1):
        given = {keyword: value for keyword, value in given.items() if keyword != "uniqueItems"}
    for keyword, value in given.items():
        if keyword in _UNSUPPORTED and not any(value == harmless for harmless in _UNSUPPORTED[keyword]):
            raise place.unsupported(keyword)


def _types(given: Mapping[str, Any], place: Place) -> frozenset[str]:
    """Types that a schema names; none if it names none."""
    if "type" not in given:
        return frozenset()
    named = given["type"]
    types = named if isinstance(named, list) else [named]
    if not types or not all(isinstance(each, str) and each in TYPES for each in types):
        raise place.at("type").refusal(f"is none of {', '.join(TYPES)}, nor a list of them")
    return frozenset(types) - ({"integer"} if "number" in types else frozenset())


def _implied_type(keywords: Set[str]) -> str | None:
    """The type that keywords without one are meant for: such a schema allows all others wholly, which nobody wants."""
    if keywords & _IN_PLACE:
        return None
    implied = [name for name, its in _IMPLIED.items() if keywords & its]
    return implied[0] if len(implied) == 1 else None


def _format(value: Any, types: frozenset[str], place: Place) -> dict[str, Any]:
    """What a format asks for. Raises :class:`RequestError` 400 when nothing here knows."""
    if value == "int32" and types & {"integer", "number"}:
        return dict(_INT32)
    if value in _FORMAT_HINTS or (types and "string" not in types):
        return {}
    if value not in _FORMATS:
        raise place.unsupported("format", f"{str(value)[:40]!r} is not known")
    return {"format": value}


def _check_map(written: Mapping[str, Any], place: Place) -> None:
    """Refuses bounds on the number of properties that are not enforced: a key may come twice.

    Raises:
        RequestError: 400.
    """
    required = set(written.get("required", ()))
    if written.get("minProperties", 0) > len(required) + 1:
        raise place.unsupported("minProperties", "above 1 is supported for required properties alone")
    optional = written.get("properties", {}).keys() - required
    if not optional or written.get("minProperties", 0) + ("maxProperties" in written) == 0:
        return
    least, most = written.get("minProperties", 0) - len(required), written.get("maxProperties")
    if most is not None and most - len(required) >= len(optional) and written.get("additionalProperties") is False:
        return
    one = least <= 1 and (most is None or most - len(required) == 1)
    if not one or written.get("additionalProperties") is not False or "patternProperties" in written:
        keyword = "minProperties" if written.get("minProperties") else "maxProperties"
        raise place.unsupported(keyword, "is supported with optional properties only for one of a closed set of them")


def _names(value: Any, place: Place, depth: int) -> list[str]:  # noqa: ARG001
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise place.refusal("is no list of names")
    return [check_text(name, place) for name in dict.fromkeys(value)]


def _pattern(value: Any, place: Place, depth: int) -> str:  # noqa: ARG001
    if not isinstance(value, str):
        raise place.refusal("is no expression")
    try:
        return searched(value)
    except PatternError as error:
        raise place.refusal(f"cannot be enforced: the expression {error}") from None
