"""Answers of the real model that are bound to a form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from app import LLM, SamplingParams
from app.contract.request import FinishReason
from app.errors import RequestError
from app.store import ModelFiles

PROMPT = "<|im_start|>user\nGive me a person.<|im_end|>\n<|im_start|>assistant\n"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
JSON = f"start: %json {json.dumps(PERSON)}"
SEEDED = SamplingParams(temperature=1.0, seed=5, max_tokens=40)


@pytest.fixture(scope="module")
def llm(smollm2: ModelFiles) -> Iterator[LLM]:
    with LLM(smollm2, max_num_seqs=8, max_model_len=1024, kv_cache_memory=64 << 20) as it:
        yield it


def test_every_choice_matches_and_is_found_again(llm: LLM) -> None:
    choices = llm.generate(PROMPT, SEEDED, n=4, constraint=JSON)
    for choice in choices:
        assert choice.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
        if choice.finish_reason is FinishReason.STOP:
            assert set(json.loads(choice.text)) == {"name", "age"}
    assert len({choice.text for choice in choices}) > 1
    assert [choice.text for choice in llm.generate(PROMPT, SEEDED, n=4, constraint=JSON)] == [
        choice.text for choice in choices
    ]


def test_it_is_the_same_beside_others(llm: LLM) -> None:
    (alone,) = llm.generate(PROMPT, SEEDED, constraint=JSON)
    (free,) = llm.generate("Once upon a time", SEEDED)
    both = llm.generate([PROMPT, "Once upon a time"], SEEDED, constraint="start: /(.|\\n)*/")
    assert both[1].text == free.text
    (again,) = llm.generate(PROMPT, SEEDED, constraint=JSON)
    assert again.text == alone.text


def test_logprobs_and_penalties_sample_every_token(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=40, logprobs=2, repetition_penalty=1.2)
    (choice,) = llm.generate(PROMPT, params, constraint='start: "The answer is " ("yes" | "no") "."')
    assert re.fullmatch(r"The answer is (yes|no)\.", choice.text)
    assert len(choice.tokens) == len(choice.token_ids)


def test_a_stop_string_ends_it_early(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=40, stop=("is",))
    (choice,) = llm.generate(PROMPT, params, constraint='start: "The answer is " ("yes" | "no")')
    assert choice.text == "The answer "
    assert choice.stop_reason == "is"


def test_control_tokens_stand_where_the_grammar_has_them(llm: LLM) -> None:
    (choice,) = llm.generate(
        PROMPT,
        SamplingParams(temperature=0.0, max_tokens=9, skip_special_tokens=False),
        constraint="start: <|im_start|> /[a-c]/",
    )
    assert re.fullmatch(r"<\|im_start\|>[a-c]", choice.text)


def test_only_allowed_tokens(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=12, allowed_token_ids=(100, 200, 300), seed=1)
    (choice,) = llm.generate(PROMPT, params)
    assert set(choice.token_ids) <= {100, 200, 300}
    assert len(choice.token_ids) == 12


def test_a_grammar_that_does_not_compile_is_refused(llm: LLM) -> None:
    with pytest.raises(RequestError, match="does not compile") as refused:
        llm.generate(PROMPT, SEEDED, constraint="start: nobody")
    assert refused.value.status == 400
    assert refused.value.code == "invalid_constraint"
