"""``POST /v1/responses``: what an answer has, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.api.service import ApiSettings
from app.errors import RequestError
from app.tasks.generate import GenerateTask
from app.tasks.reply import ToolChoice
from tests.api.conftest import Server, start_server
from tests.api.responses.conftest import ask, stream
from tests.serving.rig import MODEL, recite

FIELDS = {
    "id", "object", "created_at", "status", "completed_at", "error", "incomplete_details", "model",
    "previous_response_id", "instructions", "output", "tools", "tool_choice", "truncation", "parallel_tool_calls",
    "text", "top_p", "presence_penalty", "frequency_penalty", "top_logprobs", "temperature", "reasoning", "usage",
    "max_output_tokens", "max_tool_calls", "store", "background", "service_tier", "metadata", "safety_identifier",
    "prompt_cache_key",
}  # fmt: skip
TOOL = {"type": "function", "name": "look", "description": "Looks.", "parameters": {"type": "object"}, "strict": False}
HI = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
"""What the tests' template makes of a user's `hi`."""


def prompt_len(text: str) -> int:
    """Tokens of a prompt: a byte each, control tokens one each."""
    for control in ("<|im_start|>", "<|im_end|>"):
        text = text.replace(control, "\0")
    return len(text.encode())


async def test_an_answer_has_every_field_and_shows_what_was_asked(keeping: Server) -> None:
    plain = await ask(keeping, input="hi")
    assert plain.keys() == FIELDS
    assert (plain["object"], plain["status"], plain["store"], plain["metadata"]) == ("response", "incomplete", True, {})
    assert plain["incomplete_details"] == {"reason": "max_output_tokens"}
    assert plain["text"] == {"format": {"type": "text"}, "verbosity": "medium"}
    assert plain["usage"] == {
        "input_tokens": prompt_len(HI),
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 8,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt_len(HI) + 8,
    }
    asked: dict[str, Any] = {
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "temperature": 0.25,
        "top_p": 0.5,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "parallel_tool_calls": False,
        "tools": [TOOL],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "look"}]},
        "truncation": "auto",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "user": "u",
        "store": False,
        "max_tool_calls": 1,
    }
    shown = await ask(keeping, input="hi", **asked)
    assert shown.keys() == FIELDS | {"user"}
    assert {name: shown[name] for name in asked} == asked


async def test_a_finished_answer_is_complete(answers: Any) -> None:
    async with start_server(next_token=recite("Well.", prompt_len=prompt_len(HI))) as server:
        server.service.answers = answers
        whole = await ask(server, input="hi", max_output_tokens=None)
        (message,) = whole["output"]
        assert (whole["status"], message["status"], whole["incomplete_details"]) == ("completed", "completed", None)
        assert message["content"] == [{"type": "output_text", "text": "Well.", "annotations": [], "logprobs": []}]
        assert whole["completed_at"] >= whole["created_at"]
        events = await stream(server, input="hi", max_output_tokens=None)
        final = events[-1]["response"]
        assert events[-1]["type"] == "response.completed"
        varies = ("id", "output", "created_at", "completed_at", "usage", "max_output_tokens")
        assert {**final, **{name: whole[name] for name in varies}} == whole
        assert [part["text"] for item in final["output"] for part in item["content"]] == ["Well."]


async def test_an_answer_of_nothing_is_an_empty_message() -> None:
    async with start_server(next_token=recite("", prompt_len=prompt_len(HI))) as server:
        whole = await ask(server, input="hi")
        assert [(item["type"], item["content"][0]["text"]) for item in whole["output"]] == [("message", "")]
        events = await stream(server, input="hi")
        kinds = [event["type"].removeprefix("response.") for event in events]
        assert kinds == [
            "created", "in_progress", "output_item.added", "content_part.added", "output_text.done",
            "content_part.done", "output_item.done", "completed",
        ]  # fmt: skip


async def test_paths_without_a_version_are_the_same(keeping: Server) -> None:
    answer = await keeping.post("/responses", {"input": "hi", "max_output_tokens": 1})
    assert answer.status_code == 200
    found = await keeping.http.get(f"/responses/{answer.json()['id']}")
    assert found.json() == answer.json()


async def test_ids_are_new_whatever_the_client_calls_its_request(keeping: Server) -> None:
    body = {"input": "hi", "max_output_tokens": 1}
    headers = {"x-request-id": "same"}
    ids = {(await keeping.post("/v1/responses", body, headers=headers)).json()["id"] for _ in range(2)}
    assert len(ids) == 2


async def test_log_probabilities_come_when_asked_for(keeping: Server) -> None:
    for asked in ({"include": ["message.output_text.logprobs"]}, {"top_logprobs": 2}):
        whole = await ask(keeping, input="hi", max_output_tokens=6, **asked)
        tokens = whole["output"][0]["content"][0]["logprobs"]
        assert b"".join(bytes(token["bytes"]) for token in tokens)[: len(tokens)] == bytes(
            byte for token in tokens for byte in token["bytes"]
        )
        assert len(tokens) == 6
        assert {len(token["top_logprobs"]) for token in tokens} == {asked.get("top_logprobs", 0)}
        events = await stream(server=keeping, input="hi", max_output_tokens=6, **asked)
        deltas = [event for event in events if event["type"] == "response.output_text.delta"]
        streamed = [token for delta in deltas for token in delta["logprobs"]]
        assert streamed == events[-1]["response"]["output"][0]["content"][0]["logprobs"]
        assert len(streamed) == 6


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "input", "missing_required_parameter"),
        ({"input": []}, "input", "missing_required_parameter"),
        ({"input": 3}, "input", "invalid_type"),
        ({"input": [{"type": "web_search_call"}]}, "input[0]", "invalid_value"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0]",
            "invalid_value",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
            "input[0].content[0].text",
            "missing_required_parameter",
        ),
        ({"input": [{"type": "function_call", "call_id": "c"}]}, "input[0].name", "missing_required_parameter"),
        ({"input": "x", "previous_response_id": "resp_other"}, "previous_response_id", "previous_response_not_found"),
        ({"input": "x", "conversation": "c"}, "conversation", "unsupported_parameter"),
        ({"input": "x", "prompt": {"id": "p"}}, "prompt", "unsupported_parameter"),
        ({"input": "x", "background": True}, "background", "unsupported_parameter"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0]", "invalid_value"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"input": "x", "tool_choice": {"type": "function"}}, "tool_choice.name", "missing_required_parameter"),
        ({"input": "x", "tool_choice": {"type": "function", "name": "f"}}, "tool_choice", "invalid_value"),
        ({"input": "x", "tool_choice": {"type": "allowed_tools"}}, "tool_choice.tools", "missing_required_parameter"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format.type", "invalid_value"),
        (
            {"input": "x", "text": {"format": {"type": "json_schema"}}},
            "text.format.schema",
            "missing_required_parameter",
        ),
        (
            {"input": "x", "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "tree"}}}},
            "text.format.schema/type",
            "invalid_value",
        ),
        (
            {"input": "x", "text": {"format": {"type": "json_object"}}, "guided_regex": "a"},
            "guided_regex",
            "invalid_value",
        ),
        ({"input": "x", "max_tokens": 4}, "max_tokens", "unsupported_parameter"),
        ({"input": "x", "metadata": {"a": "b" * 513}}, "metadata.a", "invalid_value"),
        ({"input": "x", "max_output_tokens": 9999}, "input", "context_length_exceeded"),
        ({"input": "x" * 600}, "input", "context_length_exceeded"),
        ({"input": "x", "top_logprobs": 99}, "top_logprobs", "invalid_value"),
    ],
)
async def test_what_cannot_be_served_is_refused_by_name(
    shared_server: Server, body: dict[str, Any], param: str, code: str
) -> None:
    answer = await shared_server.post("/v1/responses", {"model": MODEL, **body})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code), error["message"]
    assert error["type"] == "invalid_request_error"
    assert param.split("[")[0].split(".")[0] in error["message"]


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        ({"type": "json_object"}, {"type": "object"}),
        (
            {"type": "json_schema", "name": "n", "schema": {"enum": ["a"]}, "strict": True, "description": "d"},
            {"enum": ["a"]},
        ),
    ],
)
async def test_a_form_becomes_the_requests_constraint(
    shared_server: Server, monkeypatch: pytest.MonkeyPatch, form: dict[str, Any], schema: dict[str, Any]
) -> None:
    asked: list[GenerateTask] = []

    async def check(task: GenerateTask, *_args: object) -> None:
        asked.append(task)
        raise RequestError("Seen.", status=418)

    monkeypatch.setattr(GenerateTask, "encode", check)
    answer = await shared_server.post("/v1/responses", {"input": "x", "text": {"format": form}})
    assert answer.status_code == 418
    (task,) = asked
    assert task.form is not None
    assert json.dumps(schema)[1:-1] in json.loads(task.form.source())["grammars"][0]["lark_grammar"].replace(":", ": ")


async def test_tools_and_wishes_become_reply_options(shared_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[GenerateTask] = []

    async def check(task: GenerateTask, *_args: object) -> None:
        asked.append(task)
        raise RequestError("Seen.", status=418)

    monkeypatch.setattr(GenerateTask, "encode", check)
    named = {"type": "function", "name": "look"}
    choices: list[tuple[dict[str, Any], ToolChoice]] = [
        ({}, ToolChoice()),
        ({"tool_choice": "required", "max_tool_calls": 1}, ToolChoice(mode="required", parallel=False)),
        (
            {"tool_choice": named, "parallel_tool_calls": False},
            ToolChoice(mode="required", names=frozenset({"look"}), parallel=False),
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "tools": [named], "mode": "auto"}},
            ToolChoice(names=frozenset({"look"})),
        ),
        ({"tool_choice": "none"}, ToolChoice(mode="none")),
    ]
    for body, choice in choices:
        await shared_server.post("/v1/responses", {"input": "x", "tools": [TOOL], **body})
        reply = asked[-1].reply
        assert reply is not None
        assert reply.choice == choice
        assert [(tool.name, tool.description, dict(tool.parameters), tool.strict) for tool in reply.tools] == [
            ("look", "Looks.", {"type": "object"}, False)
        ]
    for effort, thinks in (("none", False), ("high", True), (None, None)):
        body = {"input": "x", "reasoning": {"effort": effort}, "thinking_token_budget": 7}
        await shared_server.post("/v1/responses", body)
        reply = asked[-1].reply
        assert reply is not None
        assert (reply.thinks, reply.reasoning_budget) == (thinks, 7)


async def test_an_unknown_reference_is_not_found(keeping: Server) -> None:
    error = await ask(keeping, 404, input=[{"type": "item_reference", "id": "msg_" + "0" * 32 + "_0"}])
    assert (error["param"], error["code"]) == ("input[0].id", "item_not_found")


async def test_what_changes_nothing_is_named_back(keeping: Server) -> None:
    body = {
        "input": [{"role": "assistant", "content": "x", "phase": "commentary"}, {"role": "user", "content": "hi"}],
        "max_output_tokens": 1,
        "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"verbosity": "low"},
        "max_tool_calls": 5,
        "service_tier": "flex",
        "prompt_cache_retention": "24h",
        "odd": 1,
    }
    answer = await keeping.post("/v1/responses", body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["service_tier"] == "default"
    assert set(answer.headers["x-ignored-params"].split(", ")) == {
        "input.phase", "include.reasoning.encrypted_content", "reasoning.effort", "reasoning.summary", "text.verbosity",
        "max_tool_calls", "service_tier", "prompt_cache_retention", "odd",
    }  # fmt: skip


async def test_answers_are_not_kept_where_the_server_keeps_none() -> None:
    async with start_server(ApiSettings()) as server:
        for asked, named in (({}, None), ({"store": True}, "store"), ({"store": False}, None)):
            answer = await server.post("/v1/responses", {"input": "hi", "max_output_tokens": 1, **asked})
            assert answer.json()["store"] is False
            assert answer.headers.get("x-ignored-params") == named
            assert (await server.http.get(f"/v1/responses/{answer.json()['id']}")).status_code == 404


async def test_truncation_leaves_out_the_oldest_turns(keeping: Server) -> None:
    turns = [
        item
        for letter in "abcdef"
        for item in ({"role": "user", "content": letter * 100}, {"role": "assistant", "content": letter.upper() * 10})
    ]
    asked: dict[str, Any] = {
        "instructions": "s",
        "input": [*turns, {"role": "user", "content": "hi"}],
        "max_output_tokens": 16,
    }
    error = await ask(keeping, 400, **asked)
    assert error["code"] == "context_length_exceeded"
    whole = await ask(keeping, **asked, truncation="auto")
    turn = prompt_len("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n") + 110
    rest = prompt_len("<|im_start|>system\ns<|im_end|>\n" + HI)
    most = 512 - 16
    assert whole["usage"]["input_tokens"] == rest + (most - rest) // turn * turn
    error = await ask(keeping, 400, input="x" * 600, truncation="auto")
    assert error["code"] == "context_length_exceeded"


async def test_the_document_has_it(shared_server: Server) -> None:
    document = (await shared_server.http.get("/openapi.json")).json()
    assert document["paths"]["/v1/responses"]["post"]["tags"] == ["Responses"]
    assert set(document["paths"]["/v1/responses/{response_id}"]) == {"get", "delete"}
    assert {"ResponsesBody", "ResponseObject", "ResponseEvent", "ItemList"} <= set(document["components"]["schemas"])
