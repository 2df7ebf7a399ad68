"""The unmodified ollama client against a real server with the real model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import ollama
import pytest

from tests.integration.server import Server

MODEL = "smollm2-135m"
MESSAGES = [{"role": "user", "content": "Name three rivers."}]
OPTIONS: dict[str, Any] = {"temperature": 0, "num_predict": 12}


@pytest.fixture
def client(server: Server) -> Iterator[ollama.Client]:
    client = ollama.Client(host=server.url)
    yield client
    client._client.close()


def test_a_chat_streams_what_it_answers_unstreamed(client: ollama.Client) -> None:
    whole = client.chat(MODEL, messages=MESSAGES, options=OPTIONS)
    pieces = list(client.chat(MODEL, messages=MESSAGES, options=OPTIONS, stream=True))
    assert whole.message.content
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert len(pieces) > 2
    last = pieces[-1]
    assert (last.done, last.done_reason, last.eval_count) == (True, whole.done_reason, whole.eval_count)
    assert whole.prompt_eval_count == last.prompt_eval_count
    assert whole.total_duration
    assert whole.eval_duration


def test_generated_text(client: ollama.Client) -> None:
    whole = client.generate(MODEL, prompt="Name three rivers.", options=OPTIONS, logprobs=True, top_logprobs=1)
    assert whole.response == client.chat(MODEL, messages=MESSAGES, options=OPTIONS).message.content
    assert len(whole.logprobs or []) == whole.eval_count
    raw = client.generate(MODEL, prompt="The capital of France is", raw=True, options={**OPTIONS, "num_predict": 3})
    assert "Paris" in (raw.response or "")


def test_tools_are_history(client: ollama.Client) -> None:
    def weather(place: str) -> str:
        """The weather of a place."""
        return f"Rain in {place}"

    call = {"function": {"name": "weather", "arguments": {"place": "Oslo"}}}
    answer = client.chat(
        MODEL,
        messages=[
            {"role": "user", "content": "What is the weather in Oslo?"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_name": "weather", "content": weather("Oslo")},
        ],
        tools=[weather],
        options={"temperature": 0, "num_predict": 8},
    )
    asked = client.chat(
        MODEL,
        messages=[{"role": "user", "content": "What is the weather in Oslo?"}],
        tools=[weather],
        options={"temperature": 0, "num_predict": 1},
    )
    assert answer.message.content or answer.message.tool_calls
    assert (answer.prompt_eval_count or 0) > (asked.prompt_eval_count or 0), "the call and its result are read"


def test_calls_are_whole_objects(client: ollama.Client) -> None:
    def weather(place: str) -> str:
        """The weather of a place."""
        return place

    question = [{"role": "user", "content": "Call the tool weather for Oslo."}]
    options = {"temperature": 0, "num_predict": 24}
    whole = client.chat(MODEL, messages=question, tools=[weather], options=options).message
    pieces = [
        piece.message for piece in client.chat(MODEL, messages=question, tools=[weather], options=options, stream=True)
    ]
    assert [call for piece in pieces for call in piece.tool_calls or []] == list(whole.tool_calls or [])
    assert "".join(piece.content or "" for piece in pieces) == (whole.content or "")
    assert whole.tool_calls or whole.content
    for call in whole.tool_calls or []:
        assert set(call.function.arguments) <= {"place"}


def test_a_form_binds_the_answer(client: ollama.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"rivers": {"enum": [1, 2]}},
        "required": ["rivers"],
        "additionalProperties": False,
    }
    bound = client.chat(MODEL, messages=MESSAGES, format=schema, options={"num_predict": 32})
    assert json.loads(bound.message.content or "")["rivers"] in (1, 2)
    opened = client.generate(MODEL, prompt="Name a river.", format="json", options={"num_predict": 4})
    assert (opened.response or "").startswith("{")


def test_a_seed_repeats(client: ollama.Client) -> None:
    options = {"seed": 11, "temperature": 1.0, "num_predict": 12}
    texts = {client.chat(MODEL, messages=MESSAGES, options=options).message.content for _ in range(2)}
    assert len(texts) == 1


def test_what_is_served(client: ollama.Client) -> None:
    (model,) = client.list().models
    assert model.model == f"{MODEL}:latest"
    assert client.chat(model.model, messages=MESSAGES, options={"num_predict": 1}).model == model.model
    shown = client.show(MODEL)
    assert "completion" in (shown.capabilities or [])
    assert shown.template
    (running,) = client.ps().models
    assert running.context_length
    assert client.generate(MODEL).done_reason == "load"


def test_errors_are_the_clients_own(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as unknown:
        client.chat("nobody", messages=MESSAGES)
    assert unknown.value.status_code == 404
    assert "nobody" in unknown.value.error
    with pytest.raises(ollama.ResponseError) as large:
        next(iter(client.chat(MODEL, messages=MESSAGES, options={"num_ctx": 1 << 20}, stream=True)))
    assert large.value.status_code == 400
