"""Fields beyond the schema: named back, or refused, never dropped."""

from __future__ import annotations

from typing import Any

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
    answer = await shared_server.post(COMPLETIONS, {"prompt": "x", "max_tokens": 1, "messages": [1]})
    assert answer.headers["x-ignored-params"] == "messages"
    answer = await shared_server.post("/generate", {"inputs": "x", "messages": "x", "stream_options": {"a": 1}})
    assert answer.headers["x-ignored-params"] == "messages, stream_options"
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
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("response_format", {"type": "json_object"}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x"}),
        ("reasoning_effort", "high"),
        ("guided_json", {}),
        ("chat_template", "{{ 1 }}"),
        ("echo", True),
        ("best_of", 2),
        ("suffix", "end"),
    ],
)
async def test_what_cannot_be_honoured_is_refused(shared_server: Server, field: str, value: object) -> None:
    answer = await shared_server.post(CHAT, {**BODY, field: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert answer.json()["error"]["code"] == "unsupported_parameter"


async def test_values_that_ask_for_nothing_pass_unnamed(shared_server: Server) -> None:
    extras = {
        "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "best_of": 1,
        "functions": None,
        "length_penalty": 1.0,
    }
    answer = await shared_server.post(CHAT, {**BODY, **extras})
    assert answer.status_code == 200
    assert "x-ignored-params" not in answer.headers
    completion = await shared_server.post(COMPLETIONS, {"prompt": "x", "suffix": "", "best_of": 2, "n": 2})
    assert completion.status_code == 200


async def test_tools_that_must_not_be_called_are_ignored(shared_server: Server) -> None:
    extras = {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"}
    answer = await shared_server.post(CHAT, {**BODY, **extras})
    assert (answer.status_code, answer.headers["x-ignored-params"]) == (200, "tools")


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
