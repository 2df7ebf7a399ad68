"""The unmodified langchain-openai client against a real server with the real model."""

from __future__ import annotations

from typing import Any, Literal

import pydantic
import pytest

from tests.integration.server import Server

langchain_openai = pytest.importorskip("langchain_openai", reason="make clients installs it")
messages = pytest.importorskip("langchain_core.messages")

pytestmark = pytest.mark.clients

MODEL = "smollm2-135m"
ASKED = "Name a river, and say whether it is short or long."


class River(pydantic.BaseModel):
    """A river of the world."""

    name: str = pydantic.Field(max_length=20)
    length: Literal["short", "long"]


def weather(unit: Literal["celsius", "kelvin"]) -> str:
    """The weather in a unit."""
    return unit


def chat(server: Server, **options: Any) -> Any:
    """A chat model as applications make it."""
    return langchain_openai.ChatOpenAI(
        model=MODEL, base_url=f"{server.url}/v1", api_key="none", max_retries=0, temperature=0, **options
    )


def test_a_stream_says_what_the_whole_answer_does(server: Server) -> None:
    model = chat(server, max_tokens=24, stream_usage=True)
    whole = model.invoke("Name three rivers.")
    pieces = list(model.stream("Name three rivers."))
    assert whole.content
    assert "".join(piece.content for piece in pieces) == whole.content
    total = pieces[0]
    for piece in pieces[1:]:
        total += piece
    assert total.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]
    assert total.response_metadata["finish_reason"] == whole.response_metadata["finish_reason"]


async def test_several_are_answered_at_once(server: Server) -> None:
    model = chat(server, max_tokens=8)
    first, second = await model.abatch(["Name a river.", "Name a mountain."])
    assert first.content != second.content


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_has_its_form(server: Server, method: str) -> None:
    model = chat(server, max_tokens=96).with_structured_output(River, method=method)
    found = model.invoke(ASKED)
    assert found.length in ("short", "long")
    *_, last = model.stream(ASKED)
    assert last == found


def test_bound_tools_are_called_and_answered(server: Server) -> None:
    model = chat(server, max_tokens=96)
    bound = model.bind_tools([weather], tool_choice="required", parallel_tool_calls=False)
    called = bound.invoke("What is the weather in Oslo?")
    (call,) = called.tool_calls
    assert call["name"] == "weather"
    assert call["args"]["unit"] in ("celsius", "kelvin")
    total = None
    for piece in bound.stream("What is the weather in Oslo?"):
        total = piece if total is None else total + piece
    assert total is not None
    assert [(each["name"], each["args"]) for each in total.tool_calls] == [(call["name"], call["args"])]
    history = [
        messages.HumanMessage("What is the weather in Oslo?"),
        called,
        messages.ToolMessage("4 degrees", tool_call_id=call["id"]),
    ]
    assert model.invoke(history).content
    named = model.bind_tools([weather], tool_choice="weather").invoke("Weather?")
    assert {each["name"] for each in named.tool_calls} == {"weather"}


def test_its_responses_stream(server: Server) -> None:
    model = chat(server, max_tokens=24, use_responses_api=True)
    whole = model.invoke("Name three rivers.")
    assert whole.text
    assert "".join(piece.text for piece in model.stream("Name three rivers.")) == whole.text
