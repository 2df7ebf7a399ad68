"""The task of generating text: what it asks of prompts, limits and sampling."""

from __future__ import annotations

from typing import Any

import pytest

from app.api.service import ApiSettings
from app.errors import RequestError
from app.serving.types import GenerationRequest
from app.tasks.generate import GenerateTask, SamplingOptions
from app.tasks.prompts import Conversation, Prompt, TextPrompt, TokenPrompt
from app.text.chat_template import ChatTemplate
from tests.byte_tokenizer import CHATML_TEMPLATE
from tests.serving.rig import Rig, running


def task(*prompts: Prompt, sampling: SamplingOptions | None = None, **options: Any) -> GenerateTask:
    given = prompts or (TextPrompt(text="abc"),)
    return GenerateTask(prompts=given, sampling=sampling or SamplingOptions(), **options)


async def requests_of(rig: Rig, asked: GenerateTask) -> list[GenerationRequest]:
    prompts = await asked.encode(rig.generator, None)
    ids = [f"r-{place}" for place in range(len(prompts))]
    return asked.requests(rig.generator, prompts, ids, None, cache_salt="salt")


async def test_each_form_of_a_prompt_becomes_token_ids() -> None:
    async with running() as rig:
        rig.generator.chat_template = ChatTemplate(CHATML_TEMPLATE)
        conversation = Conversation(messages=[{"role": "user", "content": "Hi"}])
        short = Conversation(messages=conversation.messages, keep_last=3)
        asked = task(
            TextPrompt(text="abcd", keep_last=2),
            TextPrompt(text="né", with_offsets=True),
            TokenPrompt(token_ids=[104, 105], with_text=True),
            conversation,
            TokenPrompt(token_ids=[104, 105], keep_last=1),
            short,
        )
        last, accented, ids, chat, last_id, chat_end = await asked.encode(rig.generator, None)
        assert last.token_ids == list(b"cd")
        assert (accented.token_ids, accented.text, accented.offsets) == (list("né".encode()), "né", [0, 1, 1])
        assert (ids.token_ids, ids.text) == ([104, 105], "hi")
        assert chat.token_ids == rig.generator.chat_template.encode(conversation.messages, rig.generator.tokenizer)
        assert (last_id.token_ids, chat_end.token_ids) == ([105], chat.token_ids[-3:])
        assert [request.request_id for request in await requests_of(rig, asked)] == [f"r-{place}" for place in range(6)]


async def test_the_most_tokens_of_an_answer() -> None:
    async with running(max_model_len=100) as rig:
        short, long = TextPrompt(text="p" * 10), TextPrompt(text="p" * 95)

        async def most(**options: Any) -> list[int]:
            return [request.params.max_tokens for request in await requests_of(rig, task(short, long, **options))]

        assert await most() == [90, 5]
        assert await most(default_max_tokens=7) == [7, 5]
        assert await most(max_tokens=3, default_max_tokens=7) == [3, 3]
        with pytest.raises(RequestError, match=r"you requested 125 tokens \(95 in the prompt, 30 in the completion\)"):
            await most(max_tokens=30, default_max_tokens=7)


async def test_a_cache_smaller_than_the_context_is_told() -> None:
    async with running(max_model_len=512, num_blocks=4) as rig:
        with pytest.raises(RequestError) as raised:
            await requests_of(rig, task(TextPrompt(text="p" * 30), max_tokens=35))
        assert raised.value.message.startswith("This model's maximum context length is 64 tokens. However, ")
        assert "own context is 512 tokens" in raised.value.message


async def test_what_is_left_open_comes_from_the_model_if_the_protocol_wants_it() -> None:
    async with running() as rig:
        rig.generator.default_params = {"temperature": 0.6, "top_k": 9}

        async def params(**options: Any) -> tuple[float, int, int | None]:
            ((request),) = await requests_of(rig, task(sampling=SamplingOptions(**options)))
            return request.params.temperature, request.params.top_k, request.params.seed

        assert await params() == (0.6, 9, None)
        assert await params(top_k=-1, seed=-1) == (0.6, 0, 2**64 - 1)
        assert await params(temperature=1e-9) == (0.0, 9, None)
        assert await params(model_defaults=False) == (1.0, 0, None)
        assert await params(top_p=0.0, temperature=0.8) == (0.0, 9, None)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        (task(n=17), "n"),
        (task(*[TextPrompt(text="a")] * 100, n=3), "n"),
        (task(*[TextPrompt(text="a")] * 257, names={"prompt": "inputs"}), "inputs"),
        (task(sampling=SamplingOptions(stop=("a",) * 17), names={"stop": "stop_sequences"}), "stop_sequences"),
        (task(sampling=SamplingOptions(stop_token_ids=(1,) * 17)), "stop_token_ids"),
        (task(sampling=SamplingOptions(logprobs=21), names={"logprobs": "top"}), "top"),
        (task(sampling=SamplingOptions(prompt_logprobs=21)), "prompt_logprobs"),
    ],
)
def test_limits_name_the_clients_field(asked: GenerateTask, param: str) -> None:
    with pytest.raises(RequestError) as raised:
        asked.check(ApiSettings())
    assert (raised.value.status, raised.value.param) == (400, param)
    assert raised.value.message.startswith(f"{param}: ")


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        (task(TokenPrompt(token_ids=[999])), "prompt"),
        (task(TokenPrompt(token_ids=[1] * 600)), "prompt"),
        (task(TextPrompt(text="")), "prompt"),
        (task(TextPrompt(text=""), names={"prompt": "inputs"}), "inputs"),
        (task(sampling=SamplingOptions(min_tokens=9), max_tokens=8, names={"min_tokens": "least"}), "least"),
        (task(sampling=SamplingOptions(stop_token_ids=(999,))), "stop_token_ids"),
        (task(sampling=SamplingOptions(logit_bias={999: 1.0})), "logit_bias"),
    ],
)
async def test_what_the_model_cannot_do_is_refused(asked: GenerateTask, param: str) -> None:
    async with running() as rig:
        with pytest.raises(RequestError) as raised:
            await requests_of(rig, asked)
        assert (raised.value.status, raised.value.param) == (400, param)
