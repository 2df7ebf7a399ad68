"""Fields that bind an answer to a form, by all their names."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from app.api.openai.chat import CHAT, read_chat
from app.api.openai.completions import COMPLETIONS, read_completion
from app.api.tgi.generate import WHOLE, read_generate
from app.errors import RequestError
from app.tasks.generate import GenerateTask
from tests.api.conftest import Server
from tests.text.grammars.matching import allows

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
VALID, INVALID = '{"n": 1}', '{"n": "x"}'
MESSAGES = [{"role": "user", "content": "x"}]


def chat(fields: Mapping[str, Any]) -> GenerateTask:
    return read_chat(CHAT.schema.model_validate({"messages": MESSAGES, **fields})).task


def completion(fields: Mapping[str, Any]) -> GenerateTask:
    return read_completion(COMPLETIONS.schema.model_validate({"prompt": "x", **fields})).task


def generate(grammar: Mapping[str, Any] | None) -> GenerateTask:
    body = {"inputs": "x", "parameters": {"grammar": grammar}}
    return read_generate(WHOLE.schema.model_validate(body), stream=False).task


@pytest.mark.parametrize(
    ("fields", "valid", "invalid"),
    [
        ({"response_format": {"type": "json_object"}}, "{}", "[]"),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, VALID, INVALID),
        ({"response_format": {"type": "json_object", "value": SCHEMA}}, VALID, INVALID),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
                }
            },
            VALID,
            INVALID,
        ),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, VALID, INVALID),
        ({"response_format": {"type": "json_schema", "value": {"name": "x", "schema": SCHEMA}}}, VALID, INVALID),
        ({"response_format": {"type": "regex", "value": "a+"}}, "aa", "b"),
        ({"response_format": {"type": "grammar", "grammar": 'root ::= "a"'}}, "a", "b"),
        ({"structured_outputs": {"json": SCHEMA}}, VALID, INVALID),
        ({"structured_outputs": {"json": json.dumps(SCHEMA), "regex": None}}, VALID, INVALID),
        ({"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}}, '{"n":1}', VALID),
        ({"structured_outputs": {"json": SCHEMA, "whitespace_pattern": " {3}"}}, '{   "n":1}', VALID),
        ({"structured_outputs": {"json_object": True, "disable_fallback": True}}, "{}", "[]"),
        ({"structured_outputs": {"regex": "a+"}}, "aa", "b"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "no", "n"),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, "a", "b"),
        ({"guided_json": SCHEMA}, VALID, INVALID),
        ({"guided_json": json.dumps(SCHEMA), "guided_whitespace_pattern": ""}, '{"n":1}', VALID),
        ({"guided_regex": "a+"}, "aa", "b"),
        ({"guided_choice": ["yes", "no"]}, "no", "n"),
        ({"guided_grammar": 'root ::= "a"'}, "a", "b"),
        ({"guided_json_object": True}, "{}", "[]"),
        ({"json_schema": SCHEMA}, VALID, INVALID),
        ({"regex": "a+"}, "aa", "b"),
        ({"ebnf": 'root ::= "a"'}, "a", "b"),
        ({"grammar": 'root ::= "a"'}, "a", "b"),
        ({"format": "json"}, "{}", "[]"),
        ({"format": SCHEMA}, VALID, INVALID),
        ({"response_schema": SCHEMA}, VALID, INVALID),
        (
            {"structural_tag": {"triggers": ["<f"], "structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}]}},
            f"so <f>{VALID}</f>",
            f"<f>{INVALID}</f>",
        ),
    ],
)
@pytest.mark.parametrize("read", [chat, completion])
def test_every_name_of_a_form_is_honoured(read: Any, fields: dict[str, Any], valid: str, invalid: str) -> None:
    form = read(fields).form
    assert form is not None
    assert allows(form, valid)
    assert not allows(form, invalid)


@pytest.mark.parametrize(
    ("grammar", "valid", "invalid"),
    [
        ({"type": "json", "value": SCHEMA}, VALID, INVALID),
        ({"type": "json", "value": json.dumps(SCHEMA)}, VALID, INVALID),
        ({"type": "json_schema", "value": {"name": "x", "schema": SCHEMA}}, VALID, INVALID),
        ({"type": "regex", "value": "a+"}, "aa", "b"),
    ],
)
def test_grammars_of_tgi_are_honoured(grammar: dict[str, Any], valid: str, invalid: str) -> None:
    form = generate(grammar).form
    assert form is not None
    assert allows(form, valid)
    assert not allows(form, invalid)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": {}},
        {"response_format": {"type": "text"}},
        {"structured_outputs": {}},
        {"structured_outputs": {"json": None}},
        {"guided_json_object": False, "guided_choice": [], "guided_regex": "", "grammar": "", "format": ""},
    ],
)
def test_values_that_ask_for_nothing_bind_nothing(fields: dict[str, Any]) -> None:
    assert chat(fields).form is None
    assert generate(None).form is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"schema": SCHEMA}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "regex"}}, "response_format.value"),
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "regex"),
        ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs.regex"),
        (
            {"structured_outputs": {"disable_additional_properties": True}},
            "structured_outputs.disable_additional_properties",
        ),
        ({"structured_outputs": {"choice": "a"}}, "structured_outputs.choice"),
        ({"structured_outputs": {"json": SCHEMA, "whitespace_pattern": "x"}}, "structured_outputs.whitespace_pattern"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": {"not": {}}}, "guided_json/not"),
        ({"guided_grammar": "nonsense"}, "guided_grammar"),
        ({"json_schema": {"properties": {"a": {"uniqueItems": True}}}}, "json_schema/properties/a/uniqueItems"),
        ({"format": "xml"}, "format"),
        ({"structural_tag": "["}, "structural_tag"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        chat(fields)
    assert (refused.value.status, refused.value.param) == (400, param)


async def test_refusals_have_the_shape_of_their_protocol(shared_server: Server) -> None:
    schema = {"properties": {"a": {"type": "array", "uniqueItems": True}}}
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = await shared_server.post("/v1/chat/completions", {"messages": MESSAGES, "response_format": asked})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "unsupported_parameter")
    assert error["param"] == "response_format.json_schema.schema/properties/a/uniqueItems"
    assert "uniqueItems" in error["message"]
    parameters = {"grammar": {"type": "xml", "value": "x"}}
    answer = await shared_server.post("/generate", {"inputs": "x", "parameters": parameters})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")


async def test_what_only_compilation_shows_is_refused_before_the_engine_sees_it(shared_server: Server) -> None:
    for fields, param in (
        ({"guided_grammar": "start: nothing"}, "guided_grammar"),
        ({"json_schema": {"type": "object", "required": ["a"], "additionalProperties": False}}, "json_schema"),
    ):
        answer = await shared_server.post("/v1/completions", {"prompt": "x", **fields})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("read", [chat, completion])
def test_words_that_may_not_come(read: Callable[[Mapping[str, Any]], GenerateTask]) -> None:
    form = read({"bad_words": ["lake", "sea"]}).form
    assert form is not None
    assert allows(form, "A river.")
    assert not allows(form, "A seaside.")
    assert read({"bad_words": []}).form is None
    with pytest.raises(RequestError) as caught:
        read({"bad_words": ["lake"], "guided_json": SCHEMA})
    assert (caught.value.status, caught.value.param) == (400, "bad_words")


@pytest.mark.parametrize("read", [chat, completion])
def test_the_only_tokens_that_may_come(read: Callable[[Mapping[str, Any]], GenerateTask]) -> None:
    assert read({"allowed_token_ids": [3, 1]}).sampling.allowed_token_ids == (3, 1)
    assert read({"allowed_token_ids": []}).sampling.allowed_token_ids == ()
