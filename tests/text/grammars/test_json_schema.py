"""JSON Schemas: what their grammars allow is valid, and what cannot be honoured is refused by its place."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from typing import Any

import jsonschema
import pytest

from app.errors import RequestError
from app.text.grammars.json_schema import check_schema, json_schema, schema_rule
from app.text.grammars.schema_reader import MAX_DEPTH, MAX_SCHEMAS, MAX_VALUES
from tests.schemas import BY_HAND, Schema, generated
from tests.text.grammars.matching import allows, begins, sample


def grammar(schema: Schema | bool) -> Any:
    return json_schema(schema, param="schema")


def nested(levels: int) -> Schema:
    schema: Schema = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def check_random_texts(schema: Schema, seed: int, texts: int) -> int:
    """Samples texts and validates them; how many came to their end."""
    made = grammar(schema)
    exact = json.loads(json.dumps(schema), parse_float=Decimal)  # floats are seldom multiples of 0.01
    validator = jsonschema.validators.validator_for(exact, jsonschema.Draft202012Validator)(exact)
    chance = random.Random(seed)
    ended = 0
    for _ in range(texts):
        if (text := sample(made, chance)) is not None:
            value = json.loads(text, parse_float=Decimal)
            assert validator.is_valid(value), f"{text!r} is not valid by {json.dumps(schema)}"
            ended += 1
    return ended


@pytest.mark.parametrize("name", BY_HAND)
def test_random_texts_are_valid(name: str) -> None:
    assert check_random_texts(BY_HAND[name], seed=1, texts=15) > 0


@pytest.mark.parametrize("seed", range(10))
def test_random_texts_of_generated_schemas_are_valid(seed: int) -> None:
    ended = sum(check_random_texts(schema, seed, texts=2) for schema in generated(50, seed))
    assert ended > 75


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"type": "integer", "minimum": 3, "maximum": 12}, ["3", "12"], ["2", "13", "3.0"]),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, ["0.5", "1"], ["0", "0.0", "1.1"]),
        ({"type": "integer", "multipleOf": 5}, ["10", "-5", "0"], ["11"]),
        ({"type": "string", "maxLength": 2}, ['"é😀"', '""'], ['"abc"']),
        ({"type": "string", "pattern": "b+"}, ['"abc"'], ['"ac"']),
        ({"type": "string", "pattern": r"^[[\w&&]$"}, ['"["', '"&"', '"x"'], ['"-"']),
        ({"type": ["integer", "null"]}, ["1", "null"], ["true"]),
        ({"const": {"a": [1, "x"]}}, ['{"a": [1, "x"]}'], ['{"a": [1]}']),
        (
            {"type": "array", "prefixItems": [{"type": "null"}], "items": {"type": "boolean"}},
            ["[null,true]"],
            ["[true]"],
        ),
        ({"type": "array", "minItems": 1, "maxItems": 2}, ["[1]", "[1,2]"], ["[]", "[1,2,3]"]),
        (
            {"properties": {"a": {"type": "null"}}, "additionalProperties": False},
            ["{}", '{"a":null}'],
            ['{"b":1}', "1"],
        ),
        ({"allOf": [{"minimum": 2}, {"maximum": 3}], "type": "integer"}, ["2", "3"], ["4"]),
        ({"anyOf": [{"type": "null"}, {"type": "boolean"}]}, ["null", "true"], ["1"]),
        (True, ["1", '"a"', "[{}]"], ["a"]),
    ],
)
def test_keywords_are_enforced(schema: Schema | bool, valid: list[str], invalid: list[str]) -> None:
    assert [text for text in valid if not allows(grammar(schema), text)] == []
    assert [text for text in invalid if allows(grammar(schema), text)] == []


def test_layouts_that_are_usual_are_allowed_and_whitespace_is_bounded() -> None:
    value = {"a": 1, "b": [True, {"c": None}]}
    made = grammar({"type": "object"})
    for indent in (None, 2, 4, "\t"):
        assert allows(made, json.dumps(value, indent=indent))
    assert allows(made, json.dumps(value, separators=(",", ":")))
    for text in ("{  ", "{\n\n", '{"a":  ', "{\n" + " " * 21, " {", '{"a": 1} ', "{}\n"):
        assert not begins(made, text)
    assert not begins(json_schema({"type": "object"}, param="s", whitespace=""), "{ ")


def test_properties_come_in_the_order_of_the_schema() -> None:
    made = grammar({"properties": {"b": {}, "a": {}}, "required": ["a", "b"], "additionalProperties": False})
    assert allows(made, '{"b":1,"a":2}')
    assert not begins(made, '{"a"')


def test_a_key_has_one_spelling() -> None:
    made = grammar({"type": "object", "properties": {"a": {"type": "integer"}}})
    assert not begins(made, '{"\\u0061"')
    assert not begins(made, '{"b":1,"a"')


def test_numbers_are_bounded_and_can_be_parsed() -> None:
    for schema in (
        {"type": "integer"},
        {"type": "number"},
        {"type": "integer", "minimum": 1},
        {"type": "number", "maximum": 5},
    ):
        assert not begins(grammar(schema), "1" * 30)
        assert not begins(grammar(schema), "-0." + "1" * 30)
        assert not begins(grammar(schema), "1e9")
    assert allows(grammar({"type": "number"}), "-123456789.0123456789")
    largest = grammar({"type": "integer", "minimum": 2**53, "maximum": 2**63 - 1})
    assert not allows(largest, str(2**63))
    assert allows(largest, str(2**53 + 2))


@pytest.mark.parametrize(
    ("bounds", "inside", "outside"),
    [
        ({"exclusiveMinimum": 0, "maximum": 0.5}, ["0.1", "0.5", "0.0000000001"], ["0", "0.0", "-0", "0.6"]),
        ({"minimum": -8.5, "exclusiveMaximum": -8}, ["-8.5", "-8.1"], ["-8", "-8.0", "-8.6"]),
        ({"exclusiveMinimum": -959739338, "exclusiveMaximum": -3.83}, ["-959739337", "-4"], ["-959739338", "-3.83"]),
        ({"exclusiveMinimum": 3, "exclusiveMaximum": 4}, ["3.5"], ["3", "4", "3.0"]),
        ({"minimum": 0.1, "maximum": 0.30000000000000004}, ["0.1", "0.3"], ["0.31"]),
    ],
)
def test_bounds_of_numbers(bounds: Schema, inside: list[str], outside: list[str]) -> None:
    made = grammar({"type": "number", **bounds})
    assert [text for text in inside if not allows(made, text)] == []
    assert [text for text in outside if allows(made, text)] == []


def test_a_rule_stands_within_other_rules() -> None:
    rule = schema_rule({"type": "null"}, param="schema")
    assert rule.startswith("%json {")
    assert "\n" not in rule


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ({"properties": {"a": {"type": "array", "uniqueItems": True}}}, "/properties/a/uniqueItems"),
        ({"properties": {"a/b~c": {"not": {}}}}, "/properties/a~1b~0c/not"),
        ({"if": {}, "then": {}}, "/if"),
        ({"dependentRequired": {"a": ["b"]}}, "/dependentRequired"),
        ({"items": {"contains": {"type": "null"}}}, "/items/contains"),
        ({"propertyNames": {"maxLength": 3}}, "/propertyNames"),
        ({"unevaluatedProperties": False}, "/unevaluatedProperties"),
        ({"anyOf": [{}, {"format": "no-such"}]}, "/anyOf/1/format"),
        ({"$ref": "https://example.com/x.json"}, "/$ref"),
        ({"$ref": "#/$defs/none"}, "/$ref"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"pattern": "(?=x)"}}}, "/$defs/a/pattern"),
        ({"pattern": r"(a)\1"}, "/pattern"),
        ({"pattern": r"\bword\b"}, "/pattern"),
        ({"patternProperties": {"(": {}}}, "/patternProperties/("),
        ({"type": "text"}, "/type"),
        ({"type": "string", "maxLength": -1}, "/maxLength"),
        ({"maxItems": 10**9}, "/maxItems"),
        ({"minimum": "1"}, "/minimum"),
        ({"multipleOf": 0}, "/multipleOf"),
        ({"multipleOf": 1e-12}, "/multipleOf"),
        ({"const": 2**53 + 1}, "/const"),
        ({"const": 959739337.9999999}, "/const"),
        ({"enum": ["a\u0001"]}, "/enum"),
        ({"enum": []}, "/enum"),
        ({"required": "a"}, "/required"),
        ({"oneOf": [{"type": "string"}, {"maxLength": 3}]}, "/oneOf"),
        ({"oneOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"a": {"const": 2}}}]}, "/oneOf"),
        ({"minProperties": 2}, "/minProperties"),
        ({"properties": {"a": {}, "b": {}}, "minProperties": 1}, "/minProperties"),
        ({"items": 3}, "/items"),
        ({"allOf": []}, "/allOf"),
        ({"$dynamicRef": "#a"}, "/$dynamicRef"),
        ({"properties": {"x": {"$id": "https://example.com/", "$ref": "#/a"}}}, "/properties/x/$ref"),
        (False, ""),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, ""),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, ""),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_place(schema: Schema | bool, pointer: str) -> None:
    with pytest.raises(RequestError) as refused:
        check_schema(schema, param="response_format.json_schema.schema")
    assert refused.value.status == 400
    assert refused.value.param == "response_format.json_schema.schema" + pointer
    assert refused.value.message.startswith(refused.value.param)


def test_annotations_and_keywords_that_bind_nothing_pass() -> None:
    schema: Schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://example.com/a.json",
        "$comment": "c",
        "title": "t",
        "description": "d",
        "type": "array",
        "uniqueItems": False,
        "default": [],
        "examples": [[1]],
        "deprecated": False,
        "readOnly": True,
        "x-order": 3,
        "nullable": True,
        "items": {"$ref": "https://example.com/a.json#/$defs/item"},
        "$defs": {"item": {"type": "integer"}, "unused": {"not": {}}},
    }
    assert allows(grammar(schema), "[1, 2]")
    assert not allows(grammar(schema), '["a"]')


def test_long_ways_through_references_are_gone() -> None:
    steps = range(500)
    defs: Schema = {
        f"s{step}": {"properties": {"a": {"$ref": f"#/$defs/s{step + 1}"}}, "required": ["a"]} for step in steps
    }
    chain = {"$ref": "#/$defs/s0", "$defs": defs | {"s500": {"type": "null"}}}
    assert begins(grammar(chain), '{"a":' * 500 + "null}")
    doubling: Schema = {
        f"{name}{level}": {"oneOf": [{"$ref": f"#/$defs/r{level + 1}"}, {"$ref": f"#/$defs/s{level + 1}"}]}
        for level in range(100)
        for name in "rs"
    }
    ends = {"r100": {"const": 1}, "s100": {"const": 2}}
    with pytest.raises(RequestError) as refused:
        check_schema({"$ref": "#/$defs/r0", "$defs": doubling | ends}, param="schema")
    assert str(refused.value.param).endswith("/oneOf")


def test_sizes_are_bounded() -> None:
    assert allows(grammar(nested(MAX_DEPTH)), "[" * MAX_DEPTH + "]" * MAX_DEPTH)
    oversized: list[Schema] = [
        nested(MAX_DEPTH + 1),
        {"properties": {f"p{index}": {} for index in range(MAX_SCHEMAS)}},
        {"enum": list(range(MAX_VALUES + 1))},
        {"enum": ["x" * 300_000]},
        {"pattern": "a" * 10_000},
        {"oneOf": [{"const": index} for index in range(65)]},
    ]
    for schema in oversized:
        with pytest.raises(RequestError) as refused:
            check_schema(schema, param="schema")
        assert refused.value.status == 400
