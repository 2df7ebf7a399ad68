"""Completions with a suffix: what stands between the prompt and it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.text.infill import Infill
from app.text.tokenizer import Tokenizer
from tests.api.conftest import Server, start_server
from tests.api.openai.test_completions import PATH, complete, said, streamed
from tests.byte_tokenizer import IM_END, IM_END_ID, VOCAB_SIZE, build_byte_tokenizer

PREFIX, SUFFIX, MIDDLE = "</s>", "<s>", "<|im_start|>"
PREFIX_ID, SUFFIX_ID, MIDDLE_ID = 257, 256, 258


def make_infill(server: Server) -> None:
    """Lets three control tokens of the fake model be those for filling in; its logits have no further ids."""
    tokenizer = Tokenizer(build_byte_tokenizer().to_str(), eos_token="</s>")
    server.rig.generator.tokenizer = tokenizer
    named = {"prefix_token": PREFIX, "suffix_token": SUFFIX, "middle_token": MIDDLE}
    server.rig.generator.infill = Infill.find(tokenizer, named)


@pytest.fixture
async def infilling() -> AsyncIterator[Server]:
    async with start_server() as server:
        make_infill(server)
        yield server


def prompts_of(server: Server) -> list[list[int]]:
    """Token ids of each prompt that the engine was given."""
    assert server.rig.runner is not None
    return [row.token_ids for step in server.rig.runner.steps for row in step.rows if row.token_ids and row.start == 0]


async def test_the_models_own_tokens_stand_around_prompt_and_suffix(infilling: Server) -> None:
    answer = await complete(infilling, prompt="ab", suffix="cd", max_tokens=4)
    assert prompts_of(infilling) == [[PREFIX_ID, *b"ab", SUFFIX_ID, *b"cd", MIDDLE_ID]]
    assert answer["choices"][0]["text"] == said(7, 4)
    assert answer["usage"]["prompt_tokens"] == 7


async def test_each_of_several_prompts_gets_the_suffix(infilling: Server) -> None:
    answer = await complete(infilling, prompt=["ab", ""], suffix="c", max_tokens=2, n=2)
    assert [choice["text"] for choice in answer["choices"]] == [said(6, 2)] * 2 + [said(4, 2)] * 2
    assert sorted(map(len, prompts_of(infilling)))[:2] == [4, 4]


async def test_control_tokens_in_the_texts_are_text_unless_asked_for(infilling: Server) -> None:
    body = {"prompt": f"a{IM_END}", "suffix": f"{MIDDLE}b", "max_tokens": 1}
    await complete(infilling, **body)
    await complete(infilling, **body, parse_special=True)
    text, parsed = prompts_of(infilling)
    assert text == [PREFIX_ID, *b"a<|im_end|>", SUFFIX_ID, *b"<|im_start|>b", MIDDLE_ID]
    assert parsed == [PREFIX_ID, 97, IM_END_ID, SUFFIX_ID, MIDDLE_ID, 98, MIDDLE_ID]


async def test_echo_and_log_probabilities_are_those_of_the_prompt(infilling: Server) -> None:
    body: dict[str, Any] = {"prompt": "héy ", "suffix": " end", "max_tokens": 6, "echo": True, "logprobs": 1, "n": 2}
    whole = await complete(infilling, **body)
    chunks = await streamed(infilling, **body)
    for choice in whole["choices"]:
        assert choice["text"] == "héy " + said(12, 6)
        logprobs = choice["logprobs"]
        assert logprobs["tokens"][:5] == ["h", "bytes:\\xc3", "bytes:\\xa9", "y", " "]
        assert None not in logprobs["token_logprobs"]  # the token before the prompt foretells its first one
        assert logprobs["text_offset"][:5] == [0, 1, 1, 2, 3]
        assert len(logprobs["tokens"]) == 5 + 6
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        for name, values in logprobs.items():
            assert [value for part in parts for value in part["logprobs"][name]] == values


async def test_ids_of_the_prompt_are_all_of_them(infilling: Server) -> None:
    answer = await complete(
        infilling, prompt="a", suffix="b", max_tokens=1, return_token_ids=True, prompt_logprobs=0, echo=True
    )
    (choice,) = answer["choices"]
    assert choice["prompt_token_ids"] == [PREFIX_ID, 97, SUFFIX_ID, 98, MIDDLE_ID]
    assert len(choice["prompt_logprobs"]) == 5


async def test_tokens_that_end_a_middle_end_the_answer() -> None:
    async with start_server(next_token=lambda context: IM_END_ID if len(context) % 5 == 0 else 97) as server:
        make_infill(server)
        infill = server.rig.generator.infill
        assert infill is not None
        infill.ends = (IM_END_ID,)
        body = {"prompt": "x", "suffix": "y", "max_tokens": 20, "stop_token_ids": [3]}
        ended = (await complete(server, **body))["choices"][0]
        assert (ended["text"], ended["finish_reason"]) == ("", "stop")
        on = (await complete(server, **body, ignore_eos=True))["choices"][0]
        assert on["finish_reason"] == "length"
        plain = (await complete(server, prompt="xyzab", max_tokens=20))["choices"][0]
        assert plain["finish_reason"] == "length"


async def test_what_does_not_fit_is_told_as_for_other_prompts(infilling: Server) -> None:
    for body in ({"prompt": "a" * 300, "suffix": "b" * 300}, {"prompt": "a", "suffix": "b" * 100_000}):
        answer = await infilling.post(PATH, body)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
        assert error["message"].startswith("This model's maximum context length is 512 tokens.")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": [1, 2], "suffix": "x"}, "suffix"),
        ({"prompt": [[1, 2], [3]], "suffix": "x"}, "suffix"),
        ({"prompt": "a", "suffix": "x", "truncate_prompt_tokens": 3}, "truncate_prompt_tokens"),
        ({"prompt": "a", "suffix": 5}, "suffix"),
        ({"prompt": "a", "suffix": ["x"]}, "suffix"),
    ],
)
async def test_what_a_suffix_does_not_go_with(shared_server: Server, body: dict[str, Any], param: str) -> None:
    answer = await shared_server.post(PATH, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


async def test_a_model_without_the_tokens_says_so(shared_server: Server) -> None:
    answer = await shared_server.post(PATH, {"prompt": "a", "suffix": "b"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", "suffix")
    assert "fill in the middle" in error["message"]
    for empty in ("", None):
        answer = await shared_server.post(PATH, {"prompt": "a", "suffix": empty, "max_tokens": 1})
        assert answer.status_code == 200


def test_the_fake_model_has_the_ids() -> None:
    assert max(PREFIX_ID, SUFFIX_ID, MIDDLE_ID) < VOCAB_SIZE
