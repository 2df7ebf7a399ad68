"""Grammars of values in notations that are near to JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from app.errors import RequestError
from app.text.grammars.json_schema import schema_rule
from app.text.parsers.lark import ANY_TEXT, Lark, escaped
from app.text.parsers.literals import MOST_DEPTH, Notation
from app.text.parsers.values import (
    in_sequence,
    is_any,
    only_notes,
    parameters,
    resolved,
    text_choices,
    with_definitions,
)

_MOST = 1 << 16
"""Largest length of a text or an array that a grammar counts to."""


class LiteralGrammar:
    """Lark expressions of values in a notation, by their schemas.

    Strings that a schema says more of than that, and keywords that no such notation can be held to, are written as
    JSON where the notation has JSON's strings, and refused where it has not.
    """

    def __init__(self, lark: Lark, notation: Notation) -> None:
        self._lark, self._notation = lark, notation

    def value(self, name: str, schema: Any, param: str, depth: int = 0) -> str:
        """A value.

        Raises:
            RequestError: 400, the schema has a keyword that the notation cannot be held to.
        """
        root = schema if isinstance(schema, Mapping) else {}
        whole = resolved(schema, root)
        if depth > MOST_DEPTH:
            raise _refused(param, "$ref")
        if (choices := _choices(whole)) is not None:
            return self._lark.one_of("choice", [self._constant(choice) for choice in choices])
        for union in ("anyOf", "oneOf"):
            if only_notes(whole, {union}):
                options = [self.value(name, with_definitions(each, root), param, depth + 1) for each in whole[union]]
                return self._lark.one_of("either", options)
        kind = whole.get("type")
        if isinstance(kind, list):
            options = [self.value(name, {**whole, "type": each}, param, depth + 1) for each in kind]
            return self._lark.one_of("either", options)
        return self._of_type(name, kind, whole, root, param, depth)

    def _of_type(
        self, name: str, kind: Any, whole: Mapping[str, Any], root: Mapping[str, Any], param: str, depth: int
    ) -> str:
        lark, words = self._lark, self._notation.words
        if kind == "string" and only_notes(whole, {"type"}):
            return self._text()
        if kind == "string" and not self._notation.escapes and only_notes(whole, {"type", "minLength", "maxLength"}):
            return self._bounded_text(*_bounds(whole, "Length", param))
        if kind in ("number", "integer") or (kind == "string" and self._notation.escapes):
            return lark.rule("json", schema_rule(dict(whole), param=param))
        if kind == "boolean" and only_notes(whole, {"type"}):
            return lark.one_of("boolean", [lark.text(word) for word in (*words["true"], *words["false"])])
        if kind == "null" and only_notes(whole, {"type"}):
            return lark.one_of("nothing", [lark.text(word) for word in words["null"]])
        if kind == "array" and only_notes(whole, {"type", "items", "minItems", "maxItems"}):
            items = whole.get("items", True)
            item = self.value(name, with_definitions(items, root), param, depth + 1)
            return lark.rule("array", f'"[" {_counted(item, *_bounds(whole, "Items", param))} "]"')
        if kind == "object" and whole.get("properties"):
            return self._object(name, {**root, **whole}, param, depth)
        if is_any(whole) or (kind == "object" and only_notes(whole, {"type", "additionalProperties"})):
            return self._anything(objects_alone=kind == "object")
        raise _refused(param, next(iter(sorted(whole.keys() - {"type"})), "type"))

    def _object(self, name: str, schema: Mapping[str, Any], param: str, depth: int) -> str:
        items = []
        for key, each, required in parameters(name, schema):
            value = self.value(name, each, f"{param}/properties/{key}", depth + 1)
            items.append((f"{self._key(key)} {value}", required))
        fields = in_sequence(self._lark, "field", items, "/, ?/" if not self._notation.bare_keys else '","')
        return self._lark.rule("object", f'"{{" {fields} "}}"')

    def _key(self, key: str) -> str:
        if self._notation.bare_keys:
            return self._lark.text(f"{key}:")
        return f"{self._lark.text(json.dumps(key))} /: ?/"

    def _text(self) -> str:
        lark = self._lark
        if not self._notation.escapes:
            (mark,) = self._notation.quotes
            return lark.rule("string", f"{lark.marker(mark)} {lark.text_until('text', mark)}")
        double = lark.rule("json_string", schema_rule({"type": "string"}, param=""))
        single = lark.pattern("SINGLE_QUOTED", r"'[^'\\\x00-\x1f]*'")
        return lark.one_of("string", [double, single])

    def _bounded_text(self, least: int, most: int | None) -> str:
        lark = self._lark
        (mark,) = self._notation.quotes
        length = f"{{{least},{'' if most is None else most}}}"
        text = f"/(?s:.{length})/"
        if not lark.is_control(mark):
            text += f" & ~/{ANY_TEXT}{escaped(mark)}{ANY_TEXT}/"
        inside = lark.text_until("bounded", mark, lark.terminal("BOUNDED_TEXT", text))
        return lark.rule("string", f"{lark.marker(mark)} {inside}")

    def _constant(self, value: Any) -> str:
        lark = self._lark
        if isinstance(value, str):
            if self._notation.escapes:
                return lark.text(json.dumps(value, ensure_ascii=False))
            (mark,) = self._notation.quotes
            return " ".join([lark.marker(mark), *([lark.text(value)] if value else []), lark.marker(mark)])
        if value is None or isinstance(value, bool):
            return lark.text(self._notation.words[json.dumps(value)][0])
        return lark.text(json.dumps(value))

    def _anything(self, *, objects_alone: bool) -> str:
        lark = self._lark
        number = lark.rule("number", schema_rule({"type": "number"}, param=""))
        words = [lark.text(word) for each in self._notation.words.values() for word in each]
        key = (
            lark.pattern("KEY", r"[A-Za-z_][A-Za-z0-9_]{0,63}:")
            if self._notation.bare_keys
            else f"{self._text()} /: ?/"
        )
        options = [self._text(), number, *words, "any_array", "any_object"]
        lark.rule("any_value", " | ".join(options))
        lark.rule("any_array", '"[" (any_value (/, ?/ any_value)*)? "]"')
        lark.rule("any_object", f'"{{" ({key} any_value (/, ?/ {key} any_value)*)? "}}"')
        return "any_object" if objects_alone else "any_value"


def _choices(schema: Mapping[str, Any]) -> list[Any] | None:
    """The values of which a schema allows one, if they are no arrays and no objects."""
    choices = text_choices(schema)
    if choices is None and only_notes(schema, {"enum", "type"}) and "enum" in schema:
        choices = schema["enum"]
    if choices is None and only_notes(schema, {"const", "type"}) and "const" in schema:
        choices = [schema["const"]]
    if choices is None or any(isinstance(choice, dict | list) for choice in choices):
        return None
    return choices


def _bounds(schema: Mapping[str, Any], of: str, param: str) -> tuple[int, int | None]:
    """The least and the largest size that a schema allows."""
    least, most = schema.get(f"min{of}", 0), schema.get(f"max{of}")
    for name, bound in ((f"min{of}", least), (f"max{of}", most)):
        if bound is not None and (not isinstance(bound, int) or not 0 <= bound <= _MOST):
            raise _refused(param, name)
    if most is not None and least > most:
        raise _refused(param, f"max{of}")
    return least, most


def _counted(item: str, least: int, most: int | None) -> str:
    """Lark expression of so many items, with commas between them."""
    if most == 0:
        return ""
    more = f"{{{max(0, least - 1)},{'' if most is None else most - 1}}}"
    items = f"{item} (/, ?/ {item}){more}"
    return items if least else f"({items})?"


def _refused(param: str, keyword: str) -> RequestError:
    message = f"{param}/{keyword}: the keyword is not supported by this model's format of tool calls."
    return RequestError(message, code="unsupported_parameter", param=f"{param}/{keyword}")
