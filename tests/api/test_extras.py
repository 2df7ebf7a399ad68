"""Fields beyond the schema: named back, or refused, never dropped."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from app.api.extras import ignored_header
from app.api.service import ApiSettings
from tests.api.conftest import Server, start_server

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODY: Any = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}


async def test_unknown_and_harmless_fields_are_named_back(shared_server: Server) -> None:
    extras = {"user": "me", "metadata": {"a": "b"}, "store": True, "no_such_thing": 1}
    answer = await shared_server.post(CHAT, {**BODY, **extras})
    assert answer.status_code == 200
    assert answer.headers["x-ignored-params"] == "user, metadata, store, no_such_thing"
    stream = {"stream": True, "stream_options": {"include_obfuscation": False, "what": 1}}
    answer = await shared_server.post(CHAT, {**BODY, **stream})
    assert answer.headers["x-ignored-params"] == "stream_options.include_obfuscation, stream_options.what"
    part = {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}
    answer = await shared_server.post(CHAT, {**BODY, "messages": [{"role": "user", "content": [part]}]})
    assert answer.headers["x-ignored-params"] == "messages.content.cache_control"
    hints = {"reasoning_effort": "high", "verbosity": "low", "typical_p": 0.5}
    for path, body in ((CHAT, BODY), (COMPLETIONS, {"prompt": "x", "max_tokens": 1})):
        answer = await shared_server.post(path + "?strict=true", {**body, **hints})
        assert answer.status_code == 200
        assert set(answer.headers["x-ignored-params"].split(", ")) == hints.keys()
    answer = await shared_server.post(COMPLETIONS, {"prompt": "x", "max_tokens": 1, "messages": [1]})
    assert answer.headers["x-ignored-params"] == "messages"
    answer = await shared_server.post("/generate", {"inputs": "x", "messages": "x", "stream_options": {"a": 1}})
    assert answer.headers["x-ignored-params"] == "messages, stream_options"
    answer = await shared_server.post("/tokenize?strict=true", {"prompt": "x", "max_tokens": 1})
    assert answer.headers["x-ignored-params"] == "max_tokens"
    answer = await shared_server.post("/tokenize", {"prompt": "x", "stream_options": 1})
    assert answer.headers["x-ignored-params"] == "stream_options"
    assert "x-ignored-params" not in (await shared_server.post(CHAT, BODY)).headers


async def test_strict_mode_refuses_what_nobody_knows(shared_server: Server) -> None:
    refused = await shared_server.post(CHAT, {**BODY, "no_such_thing": 1}, params={"strict": "true"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "no_such_thing"
    assert refused.json()["error"]["code"] == "unknown_parameter"
    known = await shared_server.post(CHAT, {**BODY, "user": "me"}, params={"strict": "true"})
    assert (known.status_code, known.headers["x-ignored-params"]) == (200, "user")
    typo = await shared_server.post(CHAT, BODY, params={"strict": "maybe"})
    assert (typo.status_code, typo.json()["error"]["param"]) == (400, "strict")


async def test_strict_mode_as_a_setting() -> None:
    async with start_server(ApiSettings(strict_params=True)) as server:
        assert (await server.post(CHAT, {**BODY, "no_such_thing": 1})).status_code == 400
        assert (await server.post(CHAT, {**BODY, "no_such_thing": 1}, params={"strict": "false"})).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stop_regex", "a+"),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x"}),
        ("chat_template", "{{ 1 }}"),
        ("use_beam_search", True),
        ("suffix", "end"),
    ],
)
async def test_what_cannot_be_honoured_is_refused(shared_server: Server, field: str, value: object) -> None:
    answer = await shared_server.post(CHAT, {**BODY, field: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert answer.json()["error"]["code"] == "unsupported_parameter"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ebnf", 'root ::= "a"'),
        ("format", "json"),
        ("format", {"type": "object"}),
        ("grammar", 'root ::= "a"'),
        ("guided_choice", ["a", "b"]),
        ("guided_grammar", 'root ::= "a"'),
        ("guided_json", {"type": "object"}),
        ("guided_regex", "a+"),
        ("json_schema", {}),
        ("regex", "a+"),
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}),
        ("response_format", {"type": "structural_tag"}),
        ("response_format", "json"),
        ("stop_regex", "a+"),
        ("structural_tag", {"structures": []}),
        ("structured_outputs", {"choice": ["a"]}),
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/generate"])
async def test_constraints_are_refused_where_they_are_not_heeded(
    shared_server: Server, path: str, field: str, value: object
) -> None:
    bodies = {CHAT: BODY, COMPLETIONS: {"prompt": "x"}, "/generate": {"inputs": "x"}}
    for outer in ("extra_body", "nvext", "options", "sampling_params"):
        answer = await shared_server.post(path, {**bodies[path], outer: {field: value}})
        assert answer.status_code in (400, 422)
        assert f"{outer}.{field} is not supported" in answer.text
    if path == "/generate" or field == "stop_regex":
        answer = await shared_server.post(path, {**bodies[path], field: value})
        assert answer.status_code in (400, 422)
        assert f"{field} is not supported" in answer.text
    if path != "/generate" or field != "grammar":
        answer = await shared_server.post(path, {**bodies[path], "parameters": {field: value}})
        assert answer.status_code in (400, 422)
        assert f"{field} is not supported" in answer.text


async def test_the_sdk_is_told_that_its_constraint_is_not_heeded(shared_server: Server) -> None:
    create = shared_server.openai.chat.completions.create
    fields: Any
    for fields in ({"extra_body": {"guided_json": {}}}, {"nvext": {"guided_json": {}}}):
        with pytest.raises(openai.BadRequestError, match="guided_json is not supported"):
            await create(model="fake-model", messages=BODY["messages"], extra_body=fields)


async def test_what_is_nested_is_named_back_or_refused(shared_server: Server) -> None:
    nested = {"extra_body": {"top_k": 5, "user": "me", "nvext": {"ignore_eos": True}, "deep": {}}, "options": {}}
    answer = await shared_server.post(CHAT, {**BODY, **nested})
    named = "extra_body.top_k, extra_body.user, extra_body.nvext.ignore_eos, extra_body.deep, options"
    assert (answer.status_code, answer.headers["x-ignored-params"]) == (200, named)
    refused = await shared_server.post(CHAT + "?strict=true", {**BODY, "extra_body": {"user": "me", "top_k": 5}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "extra_body.top_k")
    for limit in ({"options": {"num_predict": 5}}, {"sampling_params": {"max_new_tokens": 5}}):
        assert (await shared_server.post(CHAT, {**BODY, **limit})).status_code == 400


async def test_values_that_ask_for_nothing_pass_unnamed(shared_server: Server) -> None:
    extras = {
        "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "text", "json_schema": None},
        "grammar": "",
        "guided_choice": [],
        "extra_body": {"response_format": {}},
        "modalities": ["text"],
        "best_of": 1,
        "functions": None,
        "length_penalty": 1.0,
        "typical_p": 1.0,
    }
    answer = await shared_server.post(CHAT, {**BODY, **extras})
    assert answer.status_code == 200
    assert "x-ignored-params" not in answer.headers
    completion = await shared_server.post(COMPLETIONS, {"prompt": "x", "suffix": "", "best_of": 2, "n": 2})
    assert completion.status_code == 200


@pytest.mark.parametrize("field", ["tools", "functions"])
async def test_tools_are_refused_where_there_is_no_conversation(shared_server: Server, field: str) -> None:
    answer = await shared_server.post(COMPLETIONS, {"prompt": "x", field: [{"name": "f"}]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


async def test_the_header_is_safe_whatever_the_names(shared_server: Server) -> None:
    names = {"line\r\nbreak: yes": 1, "ключ": 1, "x" * 500: 1, "": 1, **{f"field{i}": 1 for i in range(100)}}
    answer = await shared_server.post(CHAT, {**BODY, **names})
    assert answer.status_code == 200
    header = answer.headers["x-ignored-params"]
    assert header.startswith("line??break??yes, ????, " + "x" * 64 + ", ")
    assert header.endswith("...")
    assert len(header) < 3000
    assert "break" not in answer.headers


def test_no_names_no_header() -> None:
    assert ignored_header([]) == {}
