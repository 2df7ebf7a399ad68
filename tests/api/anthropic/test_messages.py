"""``/v1/messages`` and ``/v1/messages/count_tokens`` over HTTP."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from app.api.service import ApiSettings
from app.keys import ApiKey, KeyScope, digest
from tests.api.conftest import Server, start_server, start_server_without_engine
from tests.api.openai.test_completions import said
from tests.serving.rig import MODEL, recite

QUESTION = [{"role": "user", "content": "Hi"}]
PROMPT = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
PROMPT_LEN = 1 + len("user\nHi") + 1 + 1 + 1 + len("assistant\n")


async def send(server: Server, path: str = "/v1/messages", **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "max_tokens": 12, "messages": QUESTION, **fields}
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "tools-2024-04-04"}
    return await server.post(path, {name: value for name, value in body.items() if value is not None}, headers=headers)


def read_events(text: str) -> list[dict[str, Any]]:
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


async def test_a_stream_says_what_the_whole_answer_says(shared_server: Server) -> None:
    whole = (await send(shared_server)).json()
    assert whole["content"] == [{"type": "text", "text": said(PROMPT_LEN, 12), "citations": None}]
    assert (whole["model"], whole["stop_reason"]) == (MODEL, "max_tokens")
    assert whole["id"].startswith("msg_")
    stream = await send(shared_server, stream=True)
    assert stream.headers["content-type"].startswith("text/event-stream")
    events = read_events(stream.text)
    texts = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(texts) == whole["content"][0]["text"]
    assert events[-2]["delta"]["stop_reason"] == "max_tokens"
    assert events[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"] == 12
    assert events[-1] == {"type": "message_stop"}


async def test_a_request_has_one_id_everywhere(shared_server: Server) -> None:
    answer = await shared_server.http.post(
        "/v1/messages", json={"max_tokens": 1, "messages": QUESTION}, headers={"x-request-id": "mine"}
    )
    assert answer.headers["request-id"] == answer.headers["x-request-id"] == "mine"
    assert answer.json()["id"] == "msg_mine"
    refused = await shared_server.http.post("/v1/messages", json={}, headers={"x-request-id": "mine"})
    assert refused.headers["request-id"] == refused.json()["request_id"] == "mine"
    assert "request-id" not in (await shared_server.http.get("/v1/models")).headers


async def test_how_answers_end() -> None:
    async with start_server(next_token=recite("Hello there!", prompt_len=PROMPT_LEN)) as server:
        ended = (await send(server, max_tokens=50)).json()
        assert (ended["content"][0]["text"], ended["stop_reason"]) == ("Hello there!", "end_turn")
        stopped = (await send(server, max_tokens=50, stop_sequences=["nothing", " the"])).json()
        assert (stopped["content"][0]["text"], stopped["stop_reason"]) == ("Hello", "stop_sequence")
        assert stopped["stop_sequence"] == " the"
        silent = (await send(server, stop_sequences=["Hello"], stream=True)).text
        assert [event["type"] for event in read_events(silent)] == ["message_start", "message_delta", "message_stop"]


async def test_more_tokens_may_be_asked_for_than_fit(shared_server: Server) -> None:
    answer = (await send(shared_server, max_tokens=32_000)).json()
    assert answer["stop_reason"] == "model_context_window_exceeded"
    assert answer["usage"]["output_tokens"] == 512 - PROMPT_LEN


async def test_the_assistants_last_turn_is_gone_on_with(shared_server: Server) -> None:
    prefilled = [*QUESTION, {"role": "assistant", "content": "Well, "}]
    answer = (await send(shared_server, messages=prefilled)).json()
    assert answer["content"][0]["text"] == said(PROMPT_LEN + len("Well, "), 12)


async def test_tokens_are_counted(shared_server: Server) -> None:
    path = "/v1/messages/count_tokens"
    counted = await send(shared_server, path, max_tokens=None)
    assert counted.json() == {"input_tokens": PROMPT_LEN}
    usage = (await send(shared_server)).json()["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == PROMPT_LEN
    long = [{"role": "user", "content": "x" * 2000}]
    assert (await send(shared_server, path, max_tokens=None, messages=long)).json()["input_tokens"] > 2000
    system = await send(shared_server, path, max_tokens=None, system="Be brief.")
    assert system.json()["input_tokens"] > PROMPT_LEN


async def test_what_the_prompt_cache_gave_is_told() -> None:
    async with start_server() as server:
        messages = [
            {"role": "user", "content": [{"type": "text", "text": "x" * 60, "cache_control": {"type": "ephemeral"}}]}
        ]
        first = (await send(server, messages=messages)).json()["usage"]
        answer = await send(server, messages=messages)
        second = answer.json()["usage"]
        assert first["cache_read_input_tokens"] == 0
        assert second["cache_read_input_tokens"] > 0
        total = second["input_tokens"] + second["cache_read_input_tokens"]
        assert total == first["input_tokens"]
        assert "x-ignored-params" not in answer.headers


async def test_how_to_sample_is_heeded() -> None:
    async with start_server() as server:
        await send(server, temperature=0.5, top_p=0.9, top_k=7)
        assert server.rig.runner is not None
        sampling = server.rig.runner.steps[0].slots[0].sampling
        assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 7)


async def test_unknown_fields_are_named_back(shared_server: Server) -> None:
    tool = {"name": "f", "input_schema": {"type": "object"}, "defer_loading": True}
    answer = await send(
        shared_server,
        metadata={"user_id": "u"},
        service_tier="auto",
        context_management={"edits": []},
        tools=[tool, {**tool, "name": "g"}],
        tool_choice={"type": "none"},
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hi", "citations": []}], "id": "x"}],
        output_config={"effort": "low"},
    )
    assert answer.status_code == 200
    named = set(answer.headers["x-ignored-params"].split(", "))
    expected = {"metadata", "service_tier", "context_management", "tools.defer_loading", "messages.id"}
    assert named == {*expected, "messages.content.citations", "output_config.effort"}
    strict = await send(shared_server, "/v1/messages?strict=true", context_management={"edits": []})
    assert strict.status_code == 400


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
TOOL = {"name": "f", "input_schema": {"type": "object"}}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": None}, "max_tokens is required"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0] is of type 'image'"),
        ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text is required"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "tool_result", "tool_use_id": "a", "content": [IMAGE]}],
                    }
                ]
            },
            "messages[0].content[0].content[0] is of type 'image'",
        ),
        ({"system": [IMAGE]}, "system[0] is of type 'image'"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            "tools[0] is of type 'web_search_20250305'",
        ),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema is required"),
        ({"tools": [{**TOOL, "name": "a b"}]}, "tools[0].name"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "there is no tool 'g'"),
        ({"tools": [TOOL], "tool_choice": {"type": "some"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice needs tools"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens is required"),
        ({"thinking": {"type": "sometimes"}}, "thinking"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"mcp_servers": [{"url": "http://x"}]}, "mcp_servers"),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, "prompt is too long: "),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema is required"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "sometimes"}}}},
            "output_config.format.schema",
        ),
        ({"output_format": {"type": "regex", "schema": {}}}, "output_format.type"),
    ],
)
async def test_refusals_name_the_field(shared_server: Server, fields: dict[str, Any], words: str) -> None:
    answer = await send(shared_server, **fields)
    assert answer.status_code == 400, answer.text
    content = answer.json()
    assert list(content) == ["type", "error", "request_id"]
    assert content["type"] == "error"
    assert content["error"]["type"] == "invalid_request_error"
    assert words in content["error"]["message"]


async def test_a_client_that_wants_its_conversation_kept_learns_to_send_all_of_it(shared_server: Server) -> None:
    error = (await send(shared_server, thread={"type": "create"})).json()["error"]
    assert error["details"] == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    assert "details" not in (await send(shared_server, messages=[])).json()["error"]


async def test_errors_have_its_types() -> None:
    async with start_server() as server:
        unknown = await send(server, model="claude-none")
        assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")
        wrong = await server.http.get("/v1/messages")
        assert (wrong.status_code, wrong.json()["type"]) == (405, "error")
        counted = await send(server, "/v1/messages/count_tokens", messages=[])
        assert (counted.status_code, counted.json()["error"]["type"]) == (400, "invalid_request_error")
        with server.rig.generator.permit("other", endpoint="/other", n=40):
            full = await send(server)
        assert (full.status_code, full.json()["error"]["type"]) == (429, "rate_limit_error")
        assert full.headers["retry-after"]
        large = await server.http.post("/v1/messages", content=b"x" * (17 << 20))
        assert (large.status_code, large.json()["error"]["type"]) == (413, "request_too_large")
    async with start_server_without_engine() as server:
        loading = await send(server)
        assert (loading.status_code, loading.json()["error"]["type"]) == (503, "overloaded_error")


async def test_a_failure_in_mid_stream_is_an_event() -> None:
    async with start_server(delay=0.002) as server:
        body = {"max_tokens": 400, "messages": QUESTION, "stream": True}
        async with server.http.stream("POST", "/v1/messages", json=body) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            assert server.rig.runner is not None
            server.rig.runner.fail_collect = lambda _step: True
            rest = [line async for line in lines if line]
        assert rest[-2] == "event: error"
        error = json.loads(rest[-1].removeprefix("data: "))
        assert (error["type"], error["error"]["type"]) == ("error", "api_error")
        assert error["request_id"] == answer.headers["request-id"]


async def test_silence_is_filled_with_pings() -> None:
    async with start_server(ApiSettings(keepalive_interval=0.05), delay=0.3) as server:
        events = read_events((await send(server, max_tokens=1, stream=True)).text)
        assert events[0] == {"type": "ping"}
        assert events[-1] == {"type": "message_stop"}


async def test_a_key_comes_in_either_header() -> None:
    keys = (ApiKey("a", frozenset({KeyScope.INFER}), digest(b"secret")),)
    async with start_server(ApiSettings(api_keys=keys)) as server:
        body = {"max_tokens": 1, "messages": QUESTION}
        for headers in ({"x-api-key": "secret"}, {"authorization": "Bearer secret"}):
            assert (await server.http.post("/v1/messages", json=body, headers=headers)).status_code == 200
        refused = await server.http.post("/v1/messages", json=body, headers={"x-api-key": "wrong"})
        assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")


async def test_paths_without_a_version_lead_there(shared_server: Server) -> None:
    assert (await send(shared_server, "/messages")).status_code == 200
    assert (await send(shared_server, "/messages/count_tokens", max_tokens=None)).status_code == 200


async def test_the_document_has_its_shapes(shared_server: Server) -> None:
    document = (await shared_server.http.get("/openapi.json")).json()
    operation = document["paths"]["/v1/messages"]["post"]
    assert operation["tags"] == ["Anthropic"]
    assert operation["responses"]["400"]["content"]["application/json"]["schema"]["$ref"].endswith("AnthropicError")
    assert {"MessagesBody", "CountTokensBody", "AnthropicMessage", "MessageStart"} <= set(
        document["components"]["schemas"]
    )
