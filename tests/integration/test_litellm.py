"""The unmodified litellm client against a real server with the real model."""

from __future__ import annotations

import json
import os
from typing import Any

import httpx
import pytest

from tests.integration.server import Server

# Its table of prices comes with it: nothing is fetched.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
litellm = pytest.importorskip("litellm", reason="make clients installs it")

pytestmark = pytest.mark.clients

MODEL = "smollm2-135m"
MESSAGES = [{"role": "user", "content": "Name three rivers."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather",
        "parameters": {
            "type": "object",
            "properties": {"unit": {"enum": ["celsius", "kelvin"]}},
            "required": ["unit"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def options(server: Server) -> dict[str, Any]:
    """What every call names."""
    return {
        "model": f"openai/{MODEL}",
        "api_base": f"{server.url}/v1",
        "api_key": "none",
        "num_retries": 0,
        "temperature": 0,
    }


def test_a_stream_says_what_the_whole_answer_does(options: dict[str, Any]) -> None:
    whole = litellm.completion(messages=MESSAGES, max_tokens=24, **options)
    streamed = litellm.completion(
        messages=MESSAGES, max_tokens=24, stream=True, stream_options={"include_usage": True}, **options
    )
    rebuilt = litellm.stream_chunk_builder(list(streamed), messages=MESSAGES)
    assert whole.choices[0].message.content
    assert rebuilt.choices[0].message.content == whole.choices[0].message.content
    assert rebuilt.choices[0].finish_reason == whole.choices[0].finish_reason
    assert rebuilt.usage.completion_tokens == whole.usage.completion_tokens


def test_completions(options: dict[str, Any]) -> None:
    options["model"] = f"text-completion-openai/{MODEL}"
    whole = litellm.text_completion(prompt="The capital of France is", max_tokens=4, **options)
    assert "Paris" in whole.choices[0].text


def test_a_tool_is_called_in_both_ways(options: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    whole = litellm.completion(messages=MESSAGES, max_tokens=96, **asked, **options).choices[0]
    (call,) = whole.message.tool_calls
    assert (whole.finish_reason, call.function.name) == ("tool_calls", "weather")
    assert json.loads(call.function.arguments)["unit"] in ("celsius", "kelvin")
    streamed = litellm.completion(messages=MESSAGES, max_tokens=96, stream=True, **asked, **options)
    rebuilt = litellm.stream_chunk_builder(list(streamed)).choices[0]
    assert [(each.function.name, each.function.arguments) for each in rebuilt.message.tool_calls] == [
        (call.function.name, call.function.arguments)
    ]
    result = {"role": "tool", "tool_call_id": call.id, "content": "4 degrees"}
    history = [*MESSAGES, whole.message.model_dump(), result]
    assert litellm.completion(messages=history, max_tokens=8, tools=[TOOL], tool_choice="none", **options).choices


def test_a_schema_binds_the_answer(options: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    whole = litellm.completion(messages=MESSAGES, max_tokens=32, response_format=form, **options)
    assert json.loads(whole.choices[0].message.content)["a"] in (1, 2)


def test_responses_whole_and_streamed(options: dict[str, Any]) -> None:
    whole = litellm.responses(input="Name three rivers.", max_output_tokens=24, **options)
    text = whole.output[0].content[0].text
    events = list(litellm.responses(input="Name three rivers.", max_output_tokens=24, stream=True, **options))
    assert text
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == text


def test_messages_whole(options: dict[str, Any], server: Server) -> None:
    options |= {"model": f"anthropic/{MODEL}", "api_base": server.url}
    whole = litellm.completion(messages=MESSAGES, max_tokens=24, **options)
    streamed = litellm.completion(messages=MESSAGES, max_tokens=24, stream=True, **options)
    assert whole.choices[0].message.content
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices)
        == whole.choices[0].message.content
    )


@pytest.mark.parametrize("stream", [False, True])
def test_what_does_not_fit_is_known_as_that(options: dict[str, Any], server: Server, stream: bool) -> None:
    context = httpx.get(f"{server.url}/v1/models").json()["data"][0]["max_model_len"]
    messages = [{"role": "user", "content": "river " * context}]
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=messages, stream=stream, **options)


def test_errors_are_its_own(options: dict[str, Any]) -> None:
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(messages=MESSAGES, **{**options, "model": "openai/nobody"})
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(messages=MESSAGES, **{**options, "temperature": -1})
