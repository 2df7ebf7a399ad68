"""Completions: every form of prompt, echo, log-probabilities."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from tokenizers import normalizers

from app.text.tokenizer import Tokenizer
from tests.api.conftest import Server, start_server
from tests.byte_tokenizer import BOS_ID, EOS_ID, IM_END_ID, IM_START_ID, build_byte_tokenizer
from tests.serving.rig import MODEL, repeat

PATH = "/v1/completions"
PROMPT = "Tell me: "
TEXT = "héllo wörld, 你好! "


async def complete(server: Server, **body: Any) -> dict[str, Any]:
    answer = await server.post(PATH, body)
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


async def streamed(server: Server, **body: Any) -> list[dict[str, Any]]:
    answer = await server.post(PATH, {**body, "stream": True})
    assert answer.status_code == 200, answer.text
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def said(prompt_tokens: int, tokens: int) -> str:
    """What the fake model says after a prompt."""
    model = repeat(TEXT)
    ids = [model([0] * length) for length in range(prompt_tokens, prompt_tokens + tokens)]
    return bytes(ids).decode(errors="replace")


async def test_shape(server: Server) -> None:
    answer = await complete(server, prompt=PROMPT)
    assert list(answer) == ["id", "object", "created", "model", "system_fingerprint", "choices", "usage"]
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    text = said(len(PROMPT), 16)
    assert answer["choices"] == [{"index": 0, "text": text, "logprobs": None, "finish_reason": "length"}]
    assert answer["usage"] == {
        "prompt_tokens": len(PROMPT),
        "completion_tokens": 16,
        "total_tokens": len(PROMPT) + 16,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


async def test_sdk_streams(server: Server) -> None:
    stream = await server.openai.completions.create(model=MODEL, prompt=PROMPT, max_tokens=40, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == said(len(PROMPT), 40)
    assert {chunk.object for chunk in chunks} == {"text_completion"}
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"


@pytest.mark.parametrize(
    "prompt",
    [
        "abc",
        ["abc", "defgh"],
        [97, 98, 99],
        [[97, 98, 99], [100, 101, 102, 103, 104]],
    ],
)
async def test_every_form_of_prompt(server: Server, prompt: object) -> None:
    lengths = [3, 5] if isinstance(prompt, list) and not isinstance(prompt[0], int) else [3]
    answer = await complete(server, prompt=prompt, max_tokens=10, n=2)
    expected = [said(length, 10) for length in lengths for _ in range(2)]
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == list(enumerate(expected))
    assert answer["usage"]["prompt_tokens"] == sum(lengths)
    assert answer["usage"]["completion_tokens"] == 10 * len(expected)
    texts = [""] * len(expected)
    for chunk in await streamed(server, prompt=prompt, max_tokens=10, n=2):
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == expected


async def test_token_ids_are_taken_as_they_are() -> None:
    async with start_server() as server:
        server.rig.generator.tokenizer._prefix = [BOS_ID]  # a tokenizer that adds BOS
        counted = [
            (await complete(server, max_tokens=1, **body))["usage"]["prompt_tokens"]
            for body in ({"prompt": "abc"}, {"prompt": [97, 98, 99]}, {"prompt": "abc", "add_special_tokens": False})
        ]
    assert counted == [4, 3, 3]


RENDERED = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
RENDERED_IDS = [IM_START_ID, *b"user\nHi", IM_END_ID, *b"\n", IM_START_ID, *b"assistant\n"]


async def test_a_prompt_that_the_client_rendered_is_the_conversation(server: Server) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6}
    asked = (await server.post("/v1/chat/completions", chat)).json()
    for prompt in (RENDERED, RENDERED_IDS):
        answer = await complete(server, prompt=prompt, max_tokens=6)
        assert answer["choices"][0]["text"] == asked["choices"][0]["message"]["content"]
        assert answer["usage"]["prompt_tokens"] == asked["usage"]["prompt_tokens"] == len(RENDERED_IDS)
    several = await complete(server, prompt=[RENDERED, "abc"], max_tokens=1)
    assert several["usage"]["prompt_tokens"] == len(RENDERED_IDS) + 3
    plain = await complete(server, prompt=RENDERED, max_tokens=1, parse_special=False)
    assert plain["usage"]["prompt_tokens"] == len(RENDERED)


@pytest.mark.parametrize("parse_special", [True, False, None])
async def test_echo_of_a_rendered_prompt(parse_special: bool | None) -> None:
    async with start_server() as server:
        server.rig.generator.tokenizer._prefix = [BOS_ID]  # a tokenizer that adds BOS
        body = {"prompt": RENDERED, "max_tokens": 4, "echo": True, "logprobs": 1, "parse_special": parse_special}
        choice = (await complete(server, **body))["choices"][0]
        chunks = await streamed(server, **body)
    spelled = list(RENDERED) if parse_special is False else None
    tokens = spelled or [
        "<|im_start|>" if i == IM_START_ID else "<|im_end|>" if i == IM_END_ID else chr(i) for i in RENDERED_IDS
    ]
    logprobs = choice["logprobs"]
    assert logprobs["tokens"][:-4] == ["<s>", *tokens]
    assert choice["text"].startswith(RENDERED)
    offsets = logprobs["text_offset"]
    assert offsets[:2] == [0, 0]
    for token, start, end in zip(tokens, offsets[1:], offsets[2:], strict=False):
        assert choice["text"][start:end] == token
    streamed_choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(part["text"] for part in streamed_choices) == choice["text"]
    assert [offset for part in streamed_choices for offset in part["logprobs"]["text_offset"]] == offsets


async def test_a_rendered_bos_is_the_only_one() -> None:
    async with start_server() as server:
        server.rig.generator.tokenizer._prefix = [BOS_ID]
        body = {"max_tokens": 1, "echo": True, "logprobs": 0}
        once = (await complete(server, prompt="<s>ab", **body))["choices"][0]
        typed = (await complete(server, prompt="<s>ab", parse_special=False, **body))["choices"][0]
        bare = (await complete(server, prompt="<s>ab", add_special_tokens=False, **body))["choices"][0]
    assert once["logprobs"]["tokens"][:-1] == bare["logprobs"]["tokens"][:-1] == ["<s>", "a", "b"]
    assert once["logprobs"]["text_offset"] == [0, 3, 4, 5]
    assert typed["logprobs"]["tokens"][:-1] == ["<s>", *"<s>ab"]
    assert typed["logprobs"]["text_offset"] == [0, 0, 1, 2, 3, 4, 5]
    assert {choice["text"][:5] for choice in (once, typed, bare)} == {"<s>ab"}


async def test_offsets_are_of_the_text_as_typed() -> None:
    composing = build_byte_tokenizer()
    composing.normalizer = normalizers.NFC()
    async with start_server() as server:
        server.rig.generator.tokenizer = Tokenizer(composing.to_str())
        choice = (await complete(server, prompt="cafe\u0301s", max_tokens=1, echo=True, logprobs=0))["choices"][0]
    assert choice["text"].startswith("cafe\u0301s")
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3, 3, 5, 6]


@pytest.mark.parametrize("stop", ["</s>", ["zz", "<|im_end|>"]])
@pytest.mark.parametrize("keep", [True, False])
async def test_a_stop_string_that_is_a_control_token_stops_at_it(stop: str | list[str], keep: bool) -> None:
    control = EOS_ID if stop == "</s>" else IM_END_ID
    async with start_server(next_token=lambda context: control if len(context) == 5 else 97) as server:
        body = {"prompt": "xy", "max_tokens": 9, "stop": stop, "ignore_eos": True, "include_stop_str_in_output": keep}
        hidden = await complete(server, **body)
        shown = await complete(server, **body, skip_special_tokens=False)
        chunks = await streamed(server, **body, n=2)
    name = stop if isinstance(stop, str) else stop[1]
    assert (hidden["choices"][0]["text"], hidden["choices"][0]["finish_reason"]) == ("aaa", "stop")
    assert hidden["usage"]["completion_tokens"] == 4
    assert (shown["choices"][0]["text"], shown["choices"][0]["finish_reason"]) == ("aaa" + name * keep, "stop")
    assert shown["usage"]["completion_tokens"] == 4
    for index in (0, 1):
        parts = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert "".join(part["text"] for part in parts) == "aaa"
        assert parts[-1]["finish_reason"] == "stop"


async def test_the_sampler_knows_a_control_token_that_is_a_stop_string(server: Server) -> None:
    await complete(server, prompt="xy", max_tokens=3, min_tokens=2, stop=["<|im_end|>"], stop_token_ids=[7])
    assert server.rig.runner is not None
    slot = server.rig.runner.steps[0].slots[0]
    assert set(slot.stop_token_ids) == {7, IM_END_ID, EOS_ID}  # none of them comes before min_tokens


async def test_a_control_token_beyond_the_models_vocabulary_never_comes(server: Server) -> None:
    larger = build_byte_tokenizer()
    larger.add_special_tokens(["<|never|>"])
    server.rig.generator.tokenizer = Tokenizer(larger.to_str())
    answer = await complete(server, prompt="xy", max_tokens=3, stop=["<|never|>"])
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_echo(server: Server) -> None:
    for prompt in (PROMPT, list(PROMPT.encode())):
        whole = await complete(server, prompt=prompt, max_tokens=12, echo=True, n=2)
        expected = PROMPT + said(len(PROMPT), 12)
        assert [choice["text"] for choice in whole["choices"]] == [expected, expected]
        texts = ["", ""]
        for chunk in await streamed(server, prompt=prompt, max_tokens=12, echo=True, n=2):
            for choice in chunk["choices"]:
                texts[choice["index"]] += choice["text"]
        assert texts == [expected, expected]


async def test_logprobs_are_parallel_lists(server: Server) -> None:
    choice = (await complete(server, prompt=PROMPT, max_tokens=20, logprobs=2))["choices"][0]
    logprobs = choice["logprobs"]
    assert {name: len(values) for name, values in logprobs.items()} == dict.fromkeys(
        ("text_offset", "token_logprobs", "tokens", "top_logprobs"), 20
    )
    for token, value, top in zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
        assert top[token] == value
        assert len(top) == 2
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        if not token.startswith("bytes:"):
            assert choice["text"][offset : offset + len(token)] == token


async def test_no_alternatives_still_name_the_token(server: Server) -> None:
    logprobs = (await complete(server, prompt="x", max_tokens=3, logprobs=0))["choices"][0]["logprobs"]
    assert [list(top) for top in logprobs["top_logprobs"]] == [[token] for token in logprobs["tokens"]]


async def test_scoring_as_lm_eval_does(server: Server) -> None:
    ids = [*b"Once upon", BOS_ID, *b" a time"]
    body = {"prompt": [ids], "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1234}
    answer = await complete(server, **body)
    choice = answer["choices"][0]
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == len(ids) + 1
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    scored = logprobs["token_logprobs"][1:]
    assert all(isinstance(value, float) for value in scored)
    for token, value, top in zip(logprobs["tokens"][1:], scored, logprobs["top_logprobs"][1:], strict=True):
        assert top[token] == value == max(top.values())
    assert choice["text"].startswith("Once upon a time")
    assert logprobs["text_offset"][:11] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9]


async def test_scoring_without_an_answer(server: Server) -> None:
    body = {"prompt": PROMPT, "max_tokens": 0, "logprobs": 1, "echo": True}
    answer = await complete(server, **body)
    choice = answer["choices"][0]
    assert choice["text"] == PROMPT
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"]["tokens"] == list(PROMPT)
    assert answer["usage"]["completion_tokens"] == 0
    (chunk,) = await streamed(server, **body)
    assert chunk["choices"] == answer["choices"]


async def test_streamed_logprobs_are_those_of_the_whole_answer(server: Server) -> None:
    body = {"prompt": PROMPT, "max_tokens": 25, "logprobs": 2, "echo": True, "n": 2}
    whole = await complete(server, **body)
    chunks = await streamed(server, **body)
    for expected in whole["choices"]:
        parts = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == expected["index"]]
        assert "".join(part["text"] for part in parts) == expected["text"]
        for name, values in expected["logprobs"].items():
            assert [value for part in parts for value in part["logprobs"][name]] == values


async def test_the_document_has_null_where_chunks_have(server: Server) -> None:
    """A chunk's finish reason before the last, and the log-probability of a prompt's first token."""
    first, *_ = await streamed(server, prompt=PROMPT, max_tokens=12, logprobs=1, echo=True)
    (choice,) = first["choices"]
    assert choice["finish_reason"] is None
    assert (choice["logprobs"]["token_logprobs"][0], choice["logprobs"]["top_logprobs"][0]) == (None, None)
    schemas = (await server.http.get("/openapi.json")).json()["components"]["schemas"]
    of_choice, of_logprobs = (schemas[name]["properties"] for name in ("CompletionChoice", "CompletionLogprobs"))
    for allowed in (
        of_choice["finish_reason"],
        of_choice["logprobs"],
        of_logprobs["token_logprobs"]["items"],
        of_logprobs["top_logprobs"]["items"],
        schemas["ChatChunkChoice"]["properties"]["finish_reason"],
    ):
        assert {"type": "null"} in allowed["anyOf"]


async def test_echo_waits_for_the_prompts_logprobs() -> None:
    """The second choice takes the prompt from the cache and is faster than the first, which has to score it."""
    prompt = "a long prompt " * 70  # more tokens than one step has rows of logits
    async with start_server(max_model_len=1024, num_blocks=128) as server:
        await complete(server, prompt=prompt, max_tokens=1)  # fills the cache
        assert server.rig.runner is not None
        steps = server.rig.runner.steps
        begin = len(steps)
        chunks = await streamed(server, prompt=prompt, max_tokens=8, logprobs=1, echo=True, n=2)
        sampled = [[row.slot for row in step.rows if row.num_samples] for step in steps[begin:]]
    assert len(next(slots for slots in sampled if slots)) == 1  # the second choice alone
    firsts: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            firsts.setdefault(choice["index"], choice)
    assert sorted(firsts) == [0, 1]
    for choice in firsts.values():
        assert choice["text"].startswith(prompt)
        assert choice["logprobs"]["tokens"][: len(prompt)] == list(prompt)


async def test_eos_and_stop_tokens_end_and_can_be_ignored() -> None:
    async with start_server(next_token=lambda context: EOS_ID if len(context) % 5 == 0 else 97) as server:
        ended = await complete(server, prompt="xy", max_tokens=9)
        assert (ended["choices"][0]["text"], ended["choices"][0]["finish_reason"]) == ("aaa", "stop")
        ignored = await complete(server, prompt="xy", max_tokens=9, ignore_eos=True)
        assert (ignored["choices"][0]["text"], ignored["choices"][0]["finish_reason"]) == ("a" * 7, "length")
        shown = await complete(server, prompt="xy", max_tokens=9, ignore_eos=True, skip_special_tokens=False)
        assert shown["choices"][0]["text"] == "aaa</s>aaaa</s>"
        stopped = await complete(server, prompt="xy", max_tokens=9, stop_token_ids=[97])
        assert (stopped["choices"][0]["text"], stopped["choices"][0]["finish_reason"]) == ("", "stop")


async def test_sampling_parameters_reach_the_engine(server: Server) -> None:
    given = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": -1,
        "min_p": 0.1,
        "presence_penalty": -1.5,
        "frequency_penalty": 0.25,
        "repetition_penalty": 1.1,
        "logit_bias": {"97": 5, "98": -5.5},
        "seed": -1,
        "min_tokens": 2,
    }
    await complete(server, prompt="x", max_tokens=3, **given)
    assert server.rig.runner is not None
    slot = server.rig.runner.steps[0].slots[0]
    sampling = slot.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 0, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (-1.5, 0.25, 1.1)
    assert sampling.logit_bias == {97: 5.0, 98: -5.5}
    assert sampling.min_tokens == 2
    assert slot.seed == 2**64 - 1


async def test_nulls_mean_absent_and_the_models_defaults_fill_in() -> None:
    async with start_server() as server:
        server.rig.generator.default_params.update(temperature=0.3, top_k=40)
        names = ("temperature", "top_p", "stop", "seed", "n", "logprobs", "logit_bias", "stream", "suffix", "user")
        body = dict.fromkeys(names)
        answer = await server.post(PATH, {**body, "prompt": "x", "max_tokens": None})
        assert answer.status_code == 200
        assert "x-ignored-params" not in answer.headers
        await complete(server, prompt="x", temperature=0)
        assert server.rig.runner is not None
        first, second = (slot.sampling for step in server.rig.runner.steps for slot in step.slots)
    assert (first.temperature, first.top_k) == (0.3, 40)
    assert (second.temperature, second.top_k) == (0.0, 40)


async def test_sdk_with_several_prompts(server: Server) -> None:
    answer = await server.openai.completions.create(model=MODEL, prompt=["a", "bc"], max_tokens=4, logprobs=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].logprobs is not None
    with pytest.raises(openai.BadRequestError):
        await server.openai.completions.create(model=MODEL, prompt=["a", ""], max_tokens=4)


async def test_one_prompt_that_fails_ends_the_whole_request() -> None:
    async with start_server() as server:
        runner = server.rig.runner
        assert runner is not None
        runner.row_error = lambda _, row: "the logits are not finite" if row.start == 20 else None
        body = {"prompt": ["x", "y" * 18], "max_tokens": 100}
        whole = await server.post(PATH, body)
        assert whole.status_code == 500
        assert whole.json()["error"]["code"] == "engine_error"
        stream = await server.post(PATH, {**body, "stream": True})
        events = [line for line in stream.text.splitlines() if line]
        assert [event.startswith('data: {"error":') for event in events] == [False] * (len(events) - 1) + [True]
        assert server.rig.client.in_flight == 0
