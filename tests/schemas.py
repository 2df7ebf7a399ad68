"""JSON Schemas of the kinds that applications send: a seeded generator of them, and some that were written by hand."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

Schema = dict[str, Any]
_WORDS = [
    "id",
    "name",
    "title",
    "status",
    "kind",
    "count",
    "price",
    "email",
    "phone",
    "city",
    "street",
    "country",
    "language",
    "owner",
    "author",
    "updated",
    "score",
    "weight",
    "width",
    "color",
    "unit",
    "rating",
    "active",
    "public",
    "draft",
    "notes",
    "tags",
    "items",
    "parent",
    "source",
    "target",
    "host",
    "port",
    "region",
    "version",
]
_PATTERNS = (
    r"^[A-Z]{2,3}-\d{3,5}$",
    r"^\w+@\w+\.(com|org)$",
    r"^(red|green|blue)[0-9]?$",
    r"^#[0-9a-fA-F]{6}$",
    r"^[a-z][a-z0-9_]{0,15}$",
    r"^\+?[0-9]{1,3}[ -]?[0-9]{4,8}$",
    r"[aeiou]",
    r"^v\d+\.\d+\.\d+(-[a-z]+)?$",
    r"^(?:\/[\w.-]+)+$",
    r"^[^\s\/]{1,12}$",
)
_FORMATS = ("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")


class _Maker:
    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def make(self) -> Schema:
        kinds: list[Callable[[], Schema]] = [
            self._function,
            self._config,
            self._nested,
            self._union,
            self._merged,
            self._recursive,
            self._map,
            self._list,
            self._draft7,
        ]
        return self._chance.choice(kinds)()

    def _names(self, most: int = 6) -> list[str]:
        return self._chance.sample(_WORDS, self._chance.randint(1, most))

    def _object(self, properties: Schema, *, closed: float = 0.7) -> Schema:
        schema: Schema = {"type": "object", "properties": properties}
        required = [name for name in properties if self._chance.random() < 0.6]
        if required:
            schema["required"] = required
        if self._chance.random() < closed:
            schema["additionalProperties"] = False
        return schema

    def _text(self) -> Schema:
        chance = self._chance
        options: list[Schema] = [
            {"type": "string"},
            {"type": "string", "minLength": chance.randint(0, 3), "maxLength": chance.randint(3, 20)},
            {"type": "string", "enum": self._names()},
            {"type": "string", "pattern": chance.choice(_PATTERNS)},
            {"type": "string", "format": chance.choice(_FORMATS)},
            {"const": chance.choice(_WORDS)},
            {"type": ["string", "null"], "description": "May be absent.", "default": None},
        ]
        return chance.choice(options)

    def _number(self) -> Schema:
        chance = self._chance
        low = chance.choice((-1000, -7, 0, 1, 18, 0.5, -0.25))
        span = chance.choice((1, 5, 99, 1000, 2.5))
        options: list[Schema] = [
            {"type": "integer"},
            {"type": "number"},
            {"type": "integer", "minimum": int(low), "maximum": int(low + span) + 1},
            {"type": "number", "minimum": low, "maximum": low + span},
            {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": low + span},
            {"type": "integer", "exclusiveMinimum": int(low)},
            {"type": "integer", "multipleOf": chance.choice((2, 5, 10))},
            {"enum": [chance.randint(0, 9), 10.5, None, True]},
        ]
        return chance.choice(options)

    def _leaf(self) -> Schema:
        return self._chance.choice((self._text, self._number, lambda: {"type": "boolean"}))()

    def _any(self, depth: int) -> Schema:
        if depth == 0 or self._chance.random() < 0.5:
            return self._leaf()
        if self._chance.random() < 0.4:
            return self._array(self._any(depth - 1))
        return self._object({name: self._any(depth - 1) for name in self._names(4)})

    def _array(self, items: Schema) -> Schema:
        schema: Schema = {"type": "array", "items": items}
        if self._chance.random() < 0.6:
            schema["minItems"] = self._chance.randint(0, 2)
            schema["maxItems"] = self._chance.randint(2, 5)
        return schema

    def _function(self) -> Schema:
        properties = {name: {**self._leaf(), "description": f"The {name}."} for name in self._names()}
        return {"title": "arguments", **self._object(properties, closed=1.0)}

    def _config(self) -> Schema:
        sections = {name: self._object({key: self._leaf() for key in self._names()}) for name in self._names(3)}
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **self._object(sections)}

    def _nested(self) -> Schema:
        return self._object({name: self._any(3) for name in self._names(4)})

    def _union(self) -> Schema:
        tags = self._names(3)
        options = [
            {
                "type": "object",
                "properties": {"type": {"const": tag}, **{name: self._leaf() for name in self._names(3)}},
                "required": ["type"],
                "additionalProperties": False,
            }
            for tag in tags
        ]
        return {"type": "object", "properties": {"shape": {self._chance.choice(("anyOf", "oneOf")): options}}} | {
            "required": ["shape"],
            "additionalProperties": False,
        }

    def _merged(self) -> Schema:
        first, second = self._names(3), self._names(3)
        base = {"type": "object", "properties": {name: self._leaf() for name in first}, "required": first[:1]}
        more = {"properties": {name: {"type": "string"} for name in second if name not in first}}
        return {"$defs": {"base": base}, "allOf": [{"$ref": "#/$defs/base"}, more]}

    def _recursive(self) -> Schema:
        node = self._object(
            {"value": self._leaf(), "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}}
        )
        return {"$defs": {"node": node}, "$ref": "#/$defs/node"}

    def _map(self) -> Schema:
        schema: Schema = {"type": "object", "additionalProperties": self._any(1)}
        if self._chance.random() < 0.5:
            schema = {"type": "object", "patternProperties": {r"^[a-z_]{1,8}$": self._leaf()}}
            schema["additionalProperties"] = False
        if self._chance.random() < 0.3:
            schema["minProperties"] = 1
        return schema

    def _list(self) -> Schema:
        if self._chance.random() < 0.3:
            return {"type": "array", "prefixItems": [self._leaf(), self._leaf()], "items": False, "minItems": 2}
        return self._array(self._any(2))

    def _draft7(self) -> Schema:
        return {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "definitions": {"a/b": self._leaf(), "pair": {"type": "array", "items": [self._leaf(), self._leaf()]}},
            **self._object({"one": {"$ref": "#/definitions/a~1b"}, "two": {"$ref": "#/definitions/pair"}}),
        }


def generated(count: int, seed: int = 0) -> Iterator[Schema]:
    """So many schemas, the same for the same seed."""
    for index in range(count):
        yield _Maker(seed * 1_000_003 + index).make()


BY_HAND: dict[str, Schema] = {
    "weather": {
        "type": "object",
        "properties": {
            "location": {"type": "string", "description": "City and country."},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 14, "default": 3},
        },
        "required": ["location", "unit"],
        "additionalProperties": False,
    },
    "calendar": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "date": {"type": "string", "format": "date"},
            "participants": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["name", "date", "participants"],
        "additionalProperties": False,
    },
    "steps": {
        "type": "object",
        "properties": {
            "steps": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"explanation": {"type": "string"}, "output": {"type": "string"}},
                    "required": ["explanation", "output"],
                    "additionalProperties": False,
                },
            },
            "final_answer": {"type": "string"},
        },
        "required": ["steps", "final_answer"],
        "additionalProperties": False,
    },
    "interface": {
        "type": "object",
        "properties": {
            "type": {"type": "string", "enum": ["div", "button", "form"]},
            "label": {"type": "string"},
            "children": {"type": "array", "items": {"$ref": "#"}},
        },
        "required": ["type", "label", "children"],
        "additionalProperties": False,
    },
    "linked list": {
        "type": "object",
        "properties": {"head": {"$ref": "#/$defs/node"}},
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"type": "number"},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                },
                "required": ["value", "next"],
                "additionalProperties": False,
            }
        },
        "required": ["head"],
        "additionalProperties": False,
    },
    "tagged union of models": {
        "$defs": {
            "Cat": {
                "properties": {
                    "kind": {"const": "cat", "title": "Kind", "type": "string"},
                    "lives": {"type": "integer"},
                },
                "required": ["kind", "lives"],
                "title": "Cat",
                "type": "object",
            },
            "Dog": {
                "properties": {"kind": {"const": "dog", "type": "string"}, "breed": {"type": "string"}},
                "required": ["kind", "breed"],
                "type": "object",
            },
        },
        "properties": {
            "pet": {
                "discriminator": {"mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}, "propertyName": "kind"},
                "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
            }
        },
        "required": ["pet"],
        "type": "object",
    },
    "optional fields": {
        "type": "object",
        "properties": {
            "nickname": {"anyOf": [{"type": "string", "maxLength": 12}, {"type": "null"}], "default": None},
            "age": {"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "null"}]},
        },
    },
    "package": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": "^(?:@[a-z0-9-]+/)?[a-z0-9-]+$", "maxLength": 40},
            "version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
            "private": {"type": "boolean"},
            "dependencies": {"type": "object", "additionalProperties": {"type": "string"}},
        },
        "required": ["name", "version"],
    },
    "coordinates": {
        "type": "object",
        "properties": {
            "latitude": {"type": "number", "minimum": -90, "maximum": 90},
            "longitude": {"type": "number", "minimum": -180, "maximum": 180},
        },
        "required": ["latitude", "longitude"],
        "additionalProperties": False,
    },
    "polygon": {
        "type": "array",
        "minItems": 3,
        "maxItems": 6,
        "items": {
            "type": "array",
            "prefixItems": [{"type": "number"}, {"type": "number"}],
            "items": False,
            "minItems": 2,
        },
    },
    "matrix": {"type": "array", "items": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}}},
    "money": {
        "type": "object",
        "properties": {
            "amount": {"type": "number", "multipleOf": 0.01, "minimum": 0, "maximum": 1000},
            "currency": {"enum": ["EUR", "USD", "CNY"]},
        },
        "required": ["amount", "currency"],
    },
    "one of two sets of fields": {
        "type": "object",
        "properties": {"url": {"type": "string"}, "path": {"type": "string"}},
        "anyOf": [{"required": ["url"]}, {"required": ["path"]}],
        "additionalProperties": False,
    },
    "base and extension": {
        "definitions": {"base": {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}},
        "allOf": [
            {"$ref": "#/definitions/base"},
            {"type": "object", "properties": {"label": {"type": "string", "minLength": 1}}, "required": ["label"]},
        ],
    },
    "a string": {"type": "string", "minLength": 2, "maxLength": 10},
    "a choice of constants": {"enum": ["yes", "no", None, 3, {"other": True}, ["a", 1]]},
    "anything": {},
    "any object": {"type": "object"},
    "a map of lists": {
        "type": "object",
        "additionalProperties": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        "minProperties": 1,
        "maxProperties": 4,
    },
    "exactly one key": {
        "type": "object",
        "properties": {"card": {"type": "string"}, "cash": {"type": "boolean"}},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    },
    "draft 4": {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "type": "object",
        "properties": {
            "ratio": {"type": "number", "minimum": 0, "exclusiveMinimum": True, "maximum": 1},
            "pair": {"type": "array", "items": [{"type": "string"}, {"type": "integer"}], "additionalItems": False},
        },
        "required": ["ratio"],
    },
    "keys that need escapes": {
        "type": "object",
        "properties": {'say "hi"': {"type": "integer"}, "a/b~c": {"type": "null"}, "né\n": {"type": "boolean"}},
        "required": ['say "hi"', "a/b~c", "né\n"],
        "additionalProperties": {"type": "string"},
    },
    "numbers at their limits": {
        "type": "object",
        "properties": {
            "big": {"type": "integer", "minimum": 2**53 + 1},
            "int64": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
            "tiny": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.001},
            "int32": {"type": "integer", "format": "int32"},
            "negative": {"type": "number", "exclusiveMaximum": -1.5},
        },
        "required": ["big", "int64", "tiny", "int32", "negative"],
    },
    "types beside a union": {
        "type": ["object", "string"],
        "oneOf": [{"type": "string", "minLength": 3}, {"type": "object", "properties": {"n": {"type": "integer"}}}],
    },
    "ranges that exclude each other": {
        "oneOf": [{"type": "integer", "maximum": 0}, {"type": "integer", "exclusiveMinimum": 0}, {"type": "null"}]
    },
}
"""Schemas by what they are of."""
