"""Tools by the unmodified openai SDK, against a real server with a model that was never trained to call any."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from openai.types.chat import ChatCompletionMessageFunctionToolCall

from tests.integration.server import Server

MODEL = "smollm2-135m"
SCHEMAS: dict[str, dict[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
    "add": {
        "type": "object",
        "properties": {"numbers": {"type": "array", "items": {"type": "integer"}, "maxItems": 3}},
        "required": ["numbers"],
        "additionalProperties": False,
    },
}
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()
]
MESSAGES: Any = [{"role": "user", "content": "How is the weather in Lima, in celsius?"}]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def check(calls: Any) -> list[str]:
    """Names of calls, whose arguments are valid."""
    for call in calls:
        assert isinstance(call, ChatCompletionMessageFunctionToolCall)
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
    return [call.function.name for call in calls]


@pytest.mark.parametrize("seed", range(2))
def test_a_required_call_is_valid_whatever_the_model(client: openai.OpenAI, seed: int) -> None:
    options: Any = {"tool_choice": "required", "temperature": 1, "seed": seed, "parallel_tool_calls": False}
    choice = client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=TOOLS, **options).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert len(check(choice.message.tool_calls)) == 1
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES, tools=TOOLS, **options) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    assert streamed.message.tool_calls is not None
    assert choice.message.tool_calls is not None
    first, second = streamed.message.tool_calls[0].function, choice.message.tool_calls[0]
    assert isinstance(second, ChatCompletionMessageFunctionToolCall)
    assert (first.name, first.arguments) == (second.function.name, second.function.arguments)


def test_a_named_function_is_the_one_called(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "add"}},
        temperature=0,
    ).choices[0]
    assert check(choice.message.tool_calls) == ["add"]
    assert choice.finish_reason == "stop"


def test_a_conversation_with_results_goes_on(client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"numbers": [1, 2]}'}}
    messages: Any = [
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "3"},
    ]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, tools=TOOLS, tool_choice="none", temperature=0, max_tokens=8
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].message.tool_calls is None


def test_a_schema_binds_the_answer_beside_tools(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["a", "b"]}}}
    for seed in range(2):
        message = (
            client.chat.completions.create(
                model=MODEL, messages=MESSAGES, tools=TOOLS, response_format=form, temperature=1, seed=seed
            )
            .choices[0]
            .message
        )
        if message.tool_calls:
            check(message.tool_calls)
        else:
            assert json.loads(message.content or "") in ("a", "b")
