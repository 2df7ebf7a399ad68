"""The unmodified openai SDK's responses against a real server with the real model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import openai
import pydantic
import pytest

from tests.integration.server import Server, start_server

MODEL = "smollm2-135m"


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_stream_says_what_the_whole_answer_does(client: openai.OpenAI) -> None:
    asked = "Name a river."
    whole = client.responses.create(model=MODEL, input=asked, temperature=0, max_output_tokens=200)
    assert whole.status == "completed"
    assert whole.output_text
    with client.responses.stream(model=MODEL, input=asked, temperature=0, max_output_tokens=200) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert (kinds[0], kinds[1], kinds[-1]) == ("response.created", "response.in_progress", "response.completed")
    assert final.output_text == whole.output_text
    assert final.usage is not None
    assert whole.usage is not None
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_a_conversation_is_kept_gone_on_from_and_deleted(client: openai.OpenAI) -> None:
    first = client.responses.create(model=MODEL, input="My name is Alice.", temperature=0, max_output_tokens=8)
    second = client.responses.create(
        model=MODEL,
        input=[{"role": "user", "content": "What is my name?"}],
        previous_response_id=first.id,
        temperature=0,
        max_output_tokens=8,
    )
    told = client.responses.create(
        model=MODEL,
        input=[
            {"role": "user", "content": "My name is Alice."},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "What is my name?"},
        ],
        temperature=0,
        max_output_tokens=8,
        store=False,
    )
    assert second.output_text == told.output_text
    assert client.responses.retrieve(second.id) == second
    items = list(client.responses.input_items.list(second.id, order="asc", limit=2))
    assert [item.type for item in items] == ["message"] * 3
    assert client.responses.cancel(second.id).status == second.status
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(model=MODEL, input="x", previous_response_id=first.id)


class River(pydantic.BaseModel):
    """A form for answers."""

    name: str
    length: Literal["short", "long"]


def test_parsed_answers_have_their_form(client: openai.OpenAI) -> None:
    asked = "Name a river, and say whether it is short or long."
    whole = client.responses.parse(model=MODEL, input=asked, text_format=River, max_output_tokens=200)
    assert whole.output_parsed is not None
    assert whole.output_parsed.length in ("short", "long")
    with client.responses.stream(model=MODEL, input=asked, text_format=River, max_output_tokens=200) as stream:
        final = stream.get_final_response()
    assert isinstance(final.output_parsed, River)
    with pytest.raises(openai.BadRequestError, match=r"text\.format\.schema"):
        client.responses.create(
            model=MODEL,
            input=asked,
            text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "tree"}}},
        )


def test_a_file_of_responses_outlives_the_server(tiny_chat: Path, tmp_path: Path) -> None:
    flags = ("--model", str(tiny_chat), "--response-store", str(tmp_path / "responses.db"))
    with start_server(*flags) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        made = client.responses.create(model=tiny_chat.name, input="Hello.", max_output_tokens=8)
        server.process.kill()
        server.process.wait()
    with start_server(*flags) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        assert client.responses.retrieve(made.id) == made
        assert client.responses.create(
            model=tiny_chat.name, input="And?", previous_response_id=made.id, max_output_tokens=8
        )
