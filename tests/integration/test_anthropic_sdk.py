"""The unmodified anthropic SDK against a real server with the real model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import pytest
from anthropic.types import MessageParam, ToolParam

from tests.integration.server import Server

MODEL = "smollm2-135m"
MESSAGES: list[MessageParam] = [{"role": "user", "content": "Name three rivers."}]
GREEDY: dict[str, Any] = {"extra_body": {"temperature": 0}}
"""The SDK has no argument for it any more."""


@pytest.fixture
def client(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def test_a_stream_says_what_the_whole_answer_says(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(model=MODEL, max_tokens=24, messages=MESSAGES, system="Answer briefly.", **GREEDY)
    with client.messages.stream(
        model=MODEL, max_tokens=24, messages=MESSAGES, system="Answer briefly.", **GREEDY
    ) as stream:
        texts = list(stream.text_stream)
        message = stream.get_final_message()
    (block,) = whole.content
    assert block.type == "text"
    assert "".join(texts) == block.text
    assert len(texts) > 1
    assert message.stop_reason == whole.stop_reason
    assert message.usage.output_tokens == whole.usage.output_tokens
    assert whole._request_id


def test_raw_events_come_in_order(client: anthropic.Anthropic) -> None:
    with client.messages.create(model=MODEL, max_tokens=4, messages=MESSAGES, stream=True) as stream:
        kinds = [event.type for event in stream]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}


def test_a_stop_sequence_is_named(client: anthropic.Anthropic) -> None:
    free = client.messages.create(model=MODEL, max_tokens=24, messages=MESSAGES, **GREEDY).content[0]
    assert free.type == "text"
    stop = free.text[8:12]
    stopped = client.messages.create(model=MODEL, max_tokens=24, messages=MESSAGES, stop_sequences=[stop], **GREEDY)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", stop)


def test_counted_tokens_are_those_of_the_prompt(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=MESSAGES, system="Answer briefly.")
    usage = client.messages.create(model=MODEL, max_tokens=1, messages=MESSAGES, system="Answer briefly.").usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_a_conversation_with_tools_is_history(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(
        model=MODEL,
        max_tokens=4,
        messages=[
            {"role": "user", "content": "What is the weather in Oslo?"},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"place": "Oslo"}}],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "Rain, 4 °C"}]},
        ],
    )
    assert answer.content


WEATHER: ToolParam = {
    "name": "weather",
    "description": "The weather of a place",
    "input_schema": {
        "type": "object",
        "properties": {"unit": {"enum": ["celsius", "kelvin"]}},
        "required": ["unit"],
        "additionalProperties": False,
    },
}


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_a_tool_is_called(client: anthropic.Anthropic, choice: Any) -> None:
    choice = {**choice, "disable_parallel_tool_use": True}
    asked: Any = {"model": MODEL, "max_tokens": 64, "messages": MESSAGES, "tools": [WEATHER], "tool_choice": choice}
    whole = client.messages.create(**asked, **GREEDY)
    (call,) = [block for block in whole.content if block.type == "tool_use"]
    assert (whole.stop_reason, call.name) == ("tool_use", "weather")
    assert call.input["unit"] in ("celsius", "kelvin")
    with client.messages.stream(**asked, **GREEDY) as stream:
        message = stream.get_final_message()
    assert [(block.type, getattr(block, "input", None)) for block in message.content] == [
        (block.type, getattr(block, "input", None)) for block in whole.content
    ]
    assert client.messages.count_tokens(model=MODEL, messages=MESSAGES, tools=[WEATHER]).input_tokens == (
        whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
    )
    answered: Any = [{"type": "tool_result", "tool_use_id": call.id, "content": "4 degrees"}]
    later: Any = [*MESSAGES, whole.to_param(), {"role": "user", "content": answered}]
    asked |= {"messages": later, "tool_choice": {"type": "none"}, "max_tokens": 4}
    assert client.messages.create(**asked).stop_reason in ("end_turn", "max_tokens")


def test_the_tool_runner_runs_tools(client: anthropic.Anthropic) -> None:
    asked: list[str] = []
    choice: Any = {"type": "any", "disable_parallel_tool_use": True}

    @anthropic.beta_tool
    def weather(unit: Literal["celsius", "kelvin"]) -> str:
        """The weather."""
        asked.append(unit)
        return "4"

    runner = client.beta.messages.tool_runner(
        model=MODEL,
        max_tokens=64,
        messages=[{"role": "user", "content": "Weather?"}],
        tools=[weather],
        tool_choice=choice,
        max_iterations=2,
    )
    assert [message.stop_reason for message in runner] == ["tool_use"] * 2
    assert asked
    assert set(asked) <= {"celsius", "kelvin"}


def test_a_schema_binds_the_answer(client: anthropic.Anthropic) -> None:
    schema = {
        "type": "object",
        "properties": {"rivers": {"enum": [1, 2]}},
        "required": ["rivers"],
        "additionalProperties": False,
    }
    form: Any = {"format": {"type": "json_schema", "schema": schema}}
    with client.messages.stream(model=MODEL, max_tokens=32, messages=MESSAGES, output_config=form) as stream:
        (block,) = stream.get_final_message().content
    assert block.type == "text"
    assert json.loads(block.text)["rivers"] in (1, 2)


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (anthropic.NotFoundError, {"model": "nobody"}),
        (anthropic.BadRequestError, {"messages": []}),
        (anthropic.BadRequestError, {"max_tokens": 0}),
    ],
)
def test_errors_map_to_the_sdks_classes(
    client: anthropic.Anthropic, error: type[anthropic.APIStatusError], arguments: dict[str, Any]
) -> None:
    with pytest.raises(error) as caught:
        client.messages.create(**{"model": MODEL, "max_tokens": 4, "messages": MESSAGES, **arguments})
    assert caught.value.response.json()["type"] == "error"
    assert caught.value.request_id
