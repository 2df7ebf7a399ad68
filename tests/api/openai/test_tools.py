"""Tool calls and thought in chat: whole answers and streams, as OpenAI's SDK reads them."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from tests.api.conftest import Server, replying, thinking
from tests.serving.rig import MODEL

CHAT = "/v1/chat/completions"
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                "required": ["a", "b"],
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 22}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "What is it?"}], "tools": TOOLS, "temperature": 0}


async def whole(server: Server, **fields: Any) -> dict[str, Any]:
    answer = await server.post(CHAT, {**BODY, **fields})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def streamed(server: Server, **fields: Any) -> list[dict[str, Any]]:
    answer = await server.post(CHAT, {**BODY, **fields, "stream": True})
    assert answer.status_code == 200, answer.text
    events = re.findall(r"^data: (\{.*)$", answer.text, re.MULTILINE)
    return [json.loads(event)["choices"][0] for event in events]


def without_ids(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**call, "id": ""} for call in calls]


def joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a client makes of a stream's deltas."""
    message: dict[str, Any] = {"content": None, "tool_calls": []}
    for chunk in chunks:
        delta = chunk["delta"]
        if delta.get("content"):
            message["content"] = (message["content"] or "") + delta["content"]
        for call in delta.get("tool_calls", []):
            if call["index"] == len(message["tool_calls"]):
                assert call["id"]
                assert call["type"] == "function"
                message["tool_calls"].append({"id": "", "type": "function", "function": dict(call["function"])})
            else:
                assert call.keys() == {"index", "function"}
                assert call["function"].keys() == {"arguments"}
                message["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    return message


async def test_a_call_whole_and_streamed() -> None:
    async with replying(CALL) as server:
        choice = (await whole(server))["choices"][0]
        chunks = await streamed(server)
    message = choice["message"]
    (call,) = message["tool_calls"]
    assert message["content"] is None
    assert call["type"] == "function"
    assert re.fullmatch(r"call_[A-Za-z0-9]{24}", call["id"])
    assert call["function"] == {"name": "add", "arguments": '{"a": 1, "b": 22}'}
    assert choice["finish_reason"] == "tool_calls"
    assert joined(chunks) == {"content": None, "tool_calls": without_ids(message["tool_calls"])}
    assert chunks[0]["delta"]["role"] == "assistant"
    assert [chunk["finish_reason"] for chunk in chunks if chunk["finish_reason"]] == ["tool_calls"]
    assert len(chunks) > 3


async def test_words_before_two_calls() -> None:
    async with replying(f"Let me see.\n{CALL}\n{NOW}") as server:
        choice = (await whole(server))["choices"][0]
        chunks = await streamed(server)
    message = choice["message"]
    assert message["content"] == "Let me see."
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["add", "now"]
    assert message["tool_calls"][1]["function"]["arguments"] == "{}"
    assert joined(chunks) == {"content": "Let me see.", "tool_calls": without_ids(message["tool_calls"])}


async def test_a_call_that_is_cut_off() -> None:
    async with replying(CALL) as server:
        most = CALL.index("22") + 1
        choice = (await whole(server, max_tokens=most))["choices"][0]
        chunks = await streamed(server, max_tokens=most)
    assert choice["finish_reason"] == chunks[-1]["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"a": 1, "b": 2'
    assert joined(chunks)["tool_calls"] == without_ids(choice["message"]["tool_calls"])


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ("required", "tool_calls"),
        ({"type": "function", "function": {"name": "add"}}, "stop"),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "add"}}]},
            },
            "tool_calls",
        ),
    ],
    ids=["required", "named", "allowed"],
)
async def test_why_a_chosen_call_ends(choice: object, reason: str) -> None:
    async with replying(CALL) as server:
        answer = (await whole(server, tool_choice=choice))["choices"][0]
        chunks = await streamed(server, tool_choice=choice)
    assert answer["finish_reason"] == chunks[-1]["finish_reason"] == reason
    assert answer["message"]["tool_calls"][0]["function"]["name"] == "add"


async def test_words_alone_are_an_answer() -> None:
    async with replying("It is {1}.\n") as server:
        choice = (await whole(server))["choices"][0]
        chunks = await streamed(server)
    assert choice["message"]["content"] == joined(chunks)["content"] == "It is {1}.\n"
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"


async def test_without_a_choice_nothing_is_called() -> None:
    async with replying(CALL) as server:
        choice = (await whole(server, tool_choice="none"))["choices"][0]
        prompt = (await whole(server, tool_choice="none"))["usage"]["prompt_tokens"]
        without_tools = (await whole(server, tools=None))["usage"]["prompt_tokens"]
    assert choice["message"]["content"] == CALL
    assert choice["finish_reason"] == "stop"
    assert prompt == without_tools


async def test_functions_as_they_were_called_before() -> None:
    functions = [tool["function"] for tool in TOOLS]
    async with replying(CALL) as server:
        choice = (await whole(server, tools=None, functions=functions))["choices"][0]
        chunks = await streamed(server, tools=None, functions=functions)
        named = (await whole(server, tools=None, functions=functions, function_call={"name": "add"}))["choices"][0]
    assert choice["message"]["function_call"] == {"name": "add", "arguments": '{"a": 1, "b": 22}'}
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == chunks[-1]["finish_reason"] == "function_call"
    assert named["finish_reason"] == "stop"
    pieces = [chunk["delta"]["function_call"] for chunk in chunks if "function_call" in chunk["delta"]]
    assert pieces[0]["name"] == "add"
    assert "".join(piece["arguments"] for piece in pieces) == '{"a": 1, "b": 22}'


async def test_the_sdk_reads_a_stream_of_calls() -> None:
    async with (
        replying(CALL) as server,
        server.openai.chat.completions.stream(model=MODEL, messages=BODY["messages"], tools=TOOLS) as stream,
    ):
        async for _ in stream:
            pass
        message = (await stream.get_final_completion()).choices[0].message
    assert message.tool_calls is not None
    assert json.loads(message.tool_calls[0].function.arguments) == {"a": 1, "b": 22}


async def test_logprobs_stay_one_a_token() -> None:
    async with replying(CALL) as server:
        answer = await whole(server, logprobs=True)
        chunks = await streamed(server, logprobs=True)
    count = answer["usage"]["completion_tokens"]
    assert len(answer["choices"][0]["logprobs"]["content"]) == count
    assert sum(len(chunk["logprobs"]["content"]) for chunk in chunks) == count


def refused(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["param"]


def tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [tool("a b")]}, "tools[0].name"),
        ({"tools": [tool("x" * 129)]}, "tools[0].name"),
        ({"tools": [tool("f"), tool("f")]}, "tools[1].name"),
        ({"tools": [tool("f", parameters={"type": "string"})]}, "tools[0].parameters"),
        ({"tools": [tool(f"f{n}") for n in range(300)]}, "tools"),
        ({"tools": [tool("f", parameters={"description": "x" * (1 << 20)})]}, "tools"),
        ({"tools": [tool("f")], "tool_choice": tool("g")}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [tool("f")], "functions": [{"name": "g"}]}, "functions"),
    ],
)
async def test_tools_that_are_refused(shared_server: Server, fields: dict[str, Any], param: str) -> None:
    assert refused(await shared_server.post(CHAT, {**BODY, **fields})) == (400, param)


async def test_thought_comes_beside_the_answer() -> None:
    async with thinking("<think>\nHm, ok.\n</think>\n\nYes.") as server:
        answer = await whole(server, tools=None)
        chunks = await streamed(server, tools=None)
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"], message["reasoning"]) == ("Yes.", "Hm, ok.", "Hm, ok.")
    deltas = [chunk["delta"] for chunk in chunks]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm, ok."
    assert "".join(delta.get("reasoning", "") for delta in deltas) == "Hm, ok."
    assert joined(chunks)["content"] == "Yes."
    assert not any(delta.get("content") and delta.get("reasoning") for delta in deltas)
    usage = answer["usage"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == len("\nHm, ok.\n</think>") + 1
    assert usage["completion_tokens"] == len("<think>\nHm, ok.\n</think>\n\nYes.") + 1


async def test_thought_before_a_call() -> None:
    async with thinking(f"<think>\nHm.\n</think>\n\n{CALL}") as server:
        message = (await whole(server))["choices"][0]["message"]
    assert (message["content"], message["reasoning"]) == (None, "Hm.")
    assert message["tool_calls"][0]["function"]["name"] == "add"


async def test_thought_that_nobody_wants_to_see() -> None:
    async with thinking("<think>Hm.</think>Yes.") as server:
        message = (await whole(server, tools=None, include_reasoning=False))["choices"][0]["message"]
        chunks = await streamed(server, tools=None, include_reasoning=False)
    assert message["content"] == joined(chunks)["content"] == "Yes."
    assert "reasoning" not in message
    assert "Hm" not in json.dumps(chunks)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"enable_thinking": True}, "enable_thinking"),
        ({"enable_thinking": False}, None),
        ({"reasoning_effort": "none"}, None),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
    ],
)
async def test_what_asks_for_thought_is_named_back_where_none_is(
    shared_server: Server, fields: dict[str, Any], named: str | None
) -> None:
    answer = await shared_server.post(CHAT, {**BODY, "tools": None, "max_tokens": 1, **fields})
    assert (answer.status_code, answer.headers.get("x-ignored-params")) == (200, named)


async def test_a_budget_is_named_back_where_no_thought_is(shared_server: Server) -> None:
    answer = await shared_server.post(CHAT, {**BODY, "tools": None, "max_tokens": 1, "thinking_token_budget": 5})
    assert (answer.status_code, answer.headers["x-ignored-params"]) == (200, "thinking_token_budget")
