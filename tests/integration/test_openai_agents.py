"""The unmodified openai-agents client against a real server with the real model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal

import openai
import pydantic
import pytest

from tests.integration.server import Server

agents = pytest.importorskip("agents", reason="make clients installs it")

pytestmark = pytest.mark.clients

MODEL = "smollm2-135m"
KINDS = ("OpenAIChatCompletionsModel", "OpenAIResponsesModel")


class River(pydantic.BaseModel):
    """A form in which no answer is long: the client takes one that was cut for an error."""

    length: Literal["short", "long"]


@pytest.fixture
async def client(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    agents.set_tracing_disabled(True)
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def agent(client: openai.AsyncOpenAI, kind: str, **options: Any) -> Any:
    """An agent whose model the server is."""
    settings = agents.ModelSettings(temperature=0, max_tokens=256, tool_choice=options.pop("tool_choice", None))
    model = getattr(agents, kind)(model=MODEL, openai_client=client)
    return agents.Agent(name="a", model=model, model_settings=settings, **options)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_says_what_the_whole_answer_does(client: openai.AsyncOpenAI, kind: str) -> None:
    asked = agent(client, kind)
    whole = await agents.Runner.run(asked, "Name a river.")
    streamed = agents.Runner.run_streamed(asked, "Name a river.")
    deltas = [
        event.data.delta
        async for event in streamed.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    assert whole.final_output
    assert streamed.final_output == whole.final_output == "".join(deltas)


@pytest.mark.parametrize("kind", KINDS)
async def test_tools_run(client: openai.AsyncOpenAI, kind: str) -> None:
    asked_for: list[str] = []

    def weather(unit: Literal["celsius", "kelvin"]) -> str:
        """The weather in a unit."""
        asked_for.append(unit)
        return "4 degrees"

    tools = [agents.function_tool(weather)]
    # What a model makes of the result is its own affair: it may call again.
    asked = agent(client, kind, tools=tools, tool_choice="required", tool_use_behavior="stop_on_first_tool")
    result = await agents.Runner.run(asked, "What is the weather?")
    assert asked_for
    assert set(asked_for) <= {"celsius", "kelvin"}
    assert result.final_output == "4 degrees"
    before = len(asked_for)
    streamed = agents.Runner.run_streamed(asked, "What is the weather?")
    kinds = [event.name async for event in streamed.stream_events() if event.type == "run_item_stream_event"]
    assert {"tool_called", "tool_output"} <= set(kinds)
    assert len(asked_for) > before


@pytest.mark.parametrize("kind", KINDS)
async def test_answers_have_their_form(client: openai.AsyncOpenAI, kind: str) -> None:
    result = await agents.Runner.run(agent(client, kind, output_type=River), "Name a river; is it short or long?")
    assert isinstance(result.final_output, River)
