"""The unmodified pydantic-ai client against a real server with the real model."""

from __future__ import annotations

from typing import Any, Literal

import pydantic
import pytest

from tests.integration.server import Server

pydantic_ai = pytest.importorskip("pydantic_ai", reason="make clients installs it")
openai_models = pytest.importorskip("pydantic_ai.models.openai")
openai_provider = pytest.importorskip("pydantic_ai.providers.openai")

pytestmark = pytest.mark.clients

MODEL = "smollm2-135m"


class River(pydantic.BaseModel):
    """A river of the world."""

    name: str = pydantic.Field(max_length=20)
    length: Literal["short", "long"]


def agent(server: Server, responses: bool = False, **options: Any) -> Any:
    """An agent whose model the server is."""
    kind = openai_models.OpenAIResponsesModel if responses else openai_models.OpenAIChatModel
    provider = openai_provider.OpenAIProvider(base_url=f"{server.url}/v1", api_key="none")
    settings = {"temperature": 0, "max_tokens": 96}
    return pydantic_ai.Agent(kind(MODEL, provider=provider), model_settings=settings, **options)


@pytest.mark.parametrize("responses", [False, True])
async def test_a_stream_says_what_the_whole_answer_does(server: Server, responses: bool) -> None:
    asked = agent(server, responses, system_prompt="Answer briefly.")
    whole = await asked.run("Name a river.")
    async with asked.run_stream("Name a river.") as stream:
        texts = [text async for text in stream.stream_text(delta=True)]
    assert whole.output
    assert "".join(texts) == whole.output


@pytest.mark.parametrize("responses", [False, True])
@pytest.mark.parametrize("form", ["ToolOutput", "NativeOutput"])
async def test_answers_have_their_form(server: Server, form: str, responses: bool) -> None:
    asked = agent(server, responses, output_type=getattr(pydantic_ai, form)(River), retries=0)
    question = "Name a river, and say whether it is short or long."
    whole = await asked.run(question)
    assert isinstance(whole.output, River)
    async with asked.run_stream(question) as stream:
        assert await stream.get_output() == whole.output


async def test_tools_run_until_the_answer_comes(server: Server) -> None:
    asked_for: list[str] = []

    def weather(unit: Literal["celsius", "kelvin"]) -> str:
        """The weather in a unit."""
        asked_for.append(unit)
        return "4 degrees"

    asked = agent(server, output_type=River, tools=[weather], retries=0)
    limits = pydantic_ai.UsageLimits(request_limit=4)
    try:
        result = await asked.run("Call the tool weather.", usage_limits=limits)
    except pydantic_ai.UsageLimitExceeded:
        assert asked_for
    else:
        assert isinstance(result.output, River)
    assert set(asked_for) <= {"celsius", "kelvin"}


async def test_conversations_go_on(server: Server) -> None:
    asked = agent(server)
    first = await asked.run("My name is Alice.")
    second = await asked.run("What is my name?", message_history=first.all_messages())
    assert second.output
