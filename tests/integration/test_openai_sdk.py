"""The unmodified openai SDK against a real server with the real model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types import CompletionChoice
from openai.types.chat import ChatCompletionMessageParam

from tests.integration.prompts import PROMPTS
from tests.integration.server import Server

MODEL = "smollm2-135m"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Name three rivers."}]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat_streams_what_it_answers_unstreamed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=16, temperature=0)
    with client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=16,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    usage = chunks[-1].usage
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_seeded_sampling_repeats_and_unseeded_does_not(client: openai.OpenAI) -> None:
    def ask(seed: int | None) -> str:
        answer = client.completions.create(
            model=MODEL, prompt="Dear diary, today", max_tokens=12, temperature=1.0, seed=seed
        )
        return answer.choices[0].text

    assert ask(11) == ask(11)
    assert len({ask(None) for _ in range(3)}) > 1


def test_n_choices_differ_and_are_counted(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="My favourite word is", max_tokens=12, n=3, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.text for choice in answer.choices}) > 1


def test_stop_string_never_leaks(client: openai.OpenAI) -> None:
    free = client.completions.create(
        model=MODEL, prompt=PROMPTS["list"], max_tokens=20, temperature=0, extra_body={"ignore_eos": True}
    ).choices[0]
    stop = free.text[20:26]
    stopped = client.completions.create(
        model=MODEL, prompt=PROMPTS["list"], max_tokens=20, temperature=0, stop=stop, stream=True
    )
    chunks = [chunk.choices[0] for chunk in stopped if chunk.choices]
    assert "".join(chunk.text for chunk in chunks) == free.text[: free.text.index(stop)]
    assert chunks[-1].finish_reason == "stop"


def test_logprobs_of_a_greedy_answer_are_the_best(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=8,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    for token in logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == MODEL


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (openai.NotFoundError, {"model": "nobody"}),
        (openai.BadRequestError, {"max_tokens": 100_000}),
        (openai.BadRequestError, {"temperature": -0.5}),
        (openai.BadRequestError, {"messages": []}),
    ],
)
def test_errors_map_to_the_sdks_classes(
    client: openai.OpenAI, error: type[openai.APIStatusError], arguments: dict[str, object]
) -> None:
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": MESSAGES, **arguments})  # type: ignore[call-overload]
    body = caught.value.response.json()
    assert set(body["error"]) == {"message", "type", "param", "code"}


def test_context_length_is_refused_before_a_stream_begins(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt=[[1] * 9000], max_tokens=1, stream=True)
    assert caught.value.code == "context_length_exceeded"


def test_metrics_count_what_usage_says(client: openai.OpenAI, server: Server) -> None:
    def total(name: str) -> float:
        text = httpx.get(f"{server.url}/metrics").text
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"{name}{{"))

    before = total("vllm:generation_tokens_total")
    usage = client.completions.create(model=MODEL, prompt="Count:", max_tokens=9, extra_body={"ignore_eos": True}).usage
    assert usage is not None
    assert total("vllm:generation_tokens_total") - before == usage.completion_tokens == 9


def test_the_best_of_several_choices_are_the_likeliest(client: openai.OpenAI) -> None:
    def ask(**fields: Any) -> list[CompletionChoice]:
        answer = client.completions.create(
            model=MODEL, prompt="My favourite word is", max_tokens=8, temperature=1.0, seed=5, **fields
        )
        choices: list[CompletionChoice] = answer.choices
        return choices

    def likelihood(choice: CompletionChoice) -> float:
        assert choice.logprobs is not None
        values = [value for value in choice.logprobs.token_logprobs or [] if value is not None]
        return sum(values) / len(values)

    ranked = sorted(ask(n=4, logprobs=0), key=likelihood, reverse=True)
    assert [choice.text for choice in ask(n=2, best_of=4)] == [choice.text for choice in ranked[:2]]


def test_both_reports_of_a_prompts_logprobs_agree(client: openai.OpenAI) -> None:
    def ask(**fields: Any) -> CompletionChoice:
        answer = client.completions.create(
            model=MODEL, prompt="The capital of France is", max_tokens=1, temperature=0, **fields
        )
        choice: CompletionChoice = answer.choices[0]
        return choice

    echoed = ask(echo=True, logprobs=1).logprobs
    assert echoed is not None
    reported: Any = ask(extra_body={"prompt_logprobs": 1, "return_token_ids": True})
    places = zip(reported.prompt_token_ids[1:], reported.prompt_logprobs[1:], strict=True)
    values = [place[str(token_id)]["logprob"] for token_id, place in places]
    assert values == (echoed.token_logprobs or [])[1:-1]
