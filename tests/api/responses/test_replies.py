"""Replies of thought and calls, as the parser of the model's format tells them apart."""

from __future__ import annotations

from typing import Any

import pytest

from app.answers.answers import Answers
from tests.api.conftest import replying, thinking
from tests.api.responses.conftest import ask, stream

TOOLS = [
    {
        "type": "function",
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
    {"type": "function", "name": "now"},
]
ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 22}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
ASKED: dict[str, Any] = {"input": "hi", "tools": TOOLS, "max_output_tokens": None, "temperature": 0}


def shown(items: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Kind and text of each item, and its status."""
    return [
        (item["type"], item.get("name", ""), item["arguments"], item["status"])
        if item["type"] == "function_call"
        else (item["type"], "", "".join(part["text"] for part in item["content"]), item["status"])
        for item in items
    ]


async def test_thought_text_and_calls_are_items_whole_and_streamed() -> None:
    async with thinking(f"<think>\nHm, ok.\n</think>\n\nI add.\n{ADD}\n{NOW}") as server:
        whole = await ask(server, **ASKED)
        events = await stream(server, **ASKED)
    final = events[-1]["response"]
    assert whole["status"] == final["status"] == "completed"
    assert shown(whole["output"]) == shown(final["output"])
    thought, message, add, now = shown(final["output"])
    assert thought == ("reasoning", "", "Hm, ok.", "completed")
    assert (message[0], message[2].strip()) == ("message", "I add.")
    assert add == ("function_call", "add", '{"a": 1, "b": 22}', "completed")
    assert now == ("function_call", "now", "{}", "completed")
    call_ids = [item["call_id"] for item in final["output"][-2:]]
    assert len(set(call_ids)) == 2
    assert all(call_id.startswith("call_") for call_id in call_ids)
    details = whole["usage"]["output_tokens_details"]
    assert details == final["usage"]["output_tokens_details"]
    assert details["reasoning_tokens"] >= len("Hm, ok.")
    assert whole["output"][0]["summary"] == []
    for kind, field, place in (("reasoning_text", "delta", 0), ("function_call_arguments", "delta", 2)):
        deltas = [
            event[field]
            for event in events
            if event["type"] == f"response.{kind}.delta" and event["output_index"] == place
        ]
        assert "".join(deltas) == shown(final["output"])[place][2]


@pytest.mark.parametrize("streams", [False, True])
async def test_a_cut_call_is_incomplete(streams: bool) -> None:
    asked = {**ASKED, "max_output_tokens": ADD.index("22") + 1}
    async with replying(ADD) as server:
        cut = (await stream(server, **asked))[-1]["response"] if streams else await ask(server, **asked)
    assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    ((kind, name, arguments, status),) = shown(cut["output"])
    assert (kind, name, status) == ("function_call", "add", "incomplete")
    assert '{"a": 1, "b": 22}'.startswith(arguments)
    assert arguments


async def test_a_kept_call_is_gone_on_from_with_its_output(answers: Answers) -> None:
    async with thinking(f"<think>\nHm.\n</think>\n\n{ADD}") as server:
        server.service.answers = answers
        first = await ask(server, **ASKED)
        call = first["output"][-1]
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "23"}
        second = await ask(server, **{**ASKED, "input": [output], "previous_response_id": first["id"]})
        told = await ask(server, **{**ASKED, "input": [{"role": "user", "content": "hi"}, *first["output"], output]})
        items = (await server.http.get(f"/v1/responses/{second['id']}/input_items?order=asc")).json()["data"]
    assert [item["type"] for item in items] == ["message", "reasoning", "function_call", "function_call_output"]
    assert second["usage"]["input_tokens"] == told["usage"]["input_tokens"]


async def test_log_probabilities_are_of_the_text_alone() -> None:
    text = "Yes, it is."
    async with thinking(f"<think>\nHm.\n</think>\n\n{text}") as server:
        asked = {**ASKED, "tools": [], "top_logprobs": 0}
        whole = await ask(server, **asked)
        events = await stream(server, **asked)
    for output in (whole["output"], events[-1]["response"]["output"]):
        (part,) = output[-1]["content"]
        assert part["text"] == text
        assert b"".join(bytes(token["bytes"]) for token in part["logprobs"]).decode() == text
