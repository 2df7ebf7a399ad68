"""The engine checks every request itself; a refusal is an answer, never an exception, and touches nobody else."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from tests.engine.harness import Harness
from tests.fakes import VOCAB_SIZE, expected_tokens, fake_request

BAD: dict[str, dict[str, Any]] = {
    "empty prompt": {"prompt": []},
    "negative token": {"prompt": [1, -1]},
    "token outside vocabulary": {"prompt": [1, VOCAB_SIZE]},
    "huge token": {"prompt": [1 << 62]},
    "stop token outside vocabulary": {"stop_token_ids": (VOCAB_SIZE,)},
    "bias on token outside vocabulary": {"logit_bias": {VOCAB_SIZE: 1.0}},
    "bias not finite": {"logit_bias": {1: math.inf}},
    "bias beyond fp32": {"logit_bias": {1: 1e39}},
    "no tokens": {"max_tokens": 0},
    "min_tokens above max_tokens": {"min_tokens": 9},
    "negative min_tokens": {"min_tokens": -1},
    "temperature nan": {"temperature": math.nan},
    "temperature negative": {"temperature": -0.1},
    "temperature infinite": {"temperature": math.inf},
    "temperature beyond fp32": {"temperature": 1e39},
    "top_p zero": {"top_p": 0.0},
    "top_p nan": {"top_p": math.nan},
    "top_k negative": {"top_k": -1},
    "min_p above one": {"min_p": 1.5},
    "repetition_penalty zero": {"repetition_penalty": 0.0},
    "repetition_penalty that is zero in fp32": {"repetition_penalty": 1e-60},
    "presence_penalty beyond fp32": {"presence_penalty": -1e39},
    "presence_penalty nan": {"presence_penalty": math.nan},
    "frequency_penalty infinite": {"frequency_penalty": -math.inf},
    "logprobs negative": {"logprobs": -1},
    "logprobs wider than the vocabulary": {"logprobs": VOCAB_SIZE + 1},
    "prompt_logprobs too many": {"prompt_logprobs": 1 << 20},
    "deadline nan": {"deadline": math.nan},
    "arrival nan": {"arrival_time": math.nan},
}


@pytest.mark.parametrize("fields", BAD.values(), ids=BAD.keys())
def test_an_invalid_request_is_answered_and_its_neighbour_is_not_disturbed(fields: dict[str, Any]) -> None:
    engine = Harness()
    engine.add(fake_request("bad", **{"prompt": [1, 2], **fields}), fake_request("good", [1, 2], 5))
    engine.run()
    assert engine.errors() == {"bad": "invalid_request"}
    assert engine.tokens["good"] == expected_tokens([1, 2], 5)


@pytest.mark.parametrize("seed", [-(1 << 63) - 1, 1 << 64])
def test_seeds_have_64_bits(seed: int) -> None:
    engine = Harness()
    engine.add(msgspec.structs.replace(fake_request("a", [1]), seed=seed))
    engine.run()
    assert engine.errors() == {"a": "invalid_request"}


@pytest.mark.parametrize("sample_index", [-1, 1 << 32])
def test_sample_indices_have_32_bits(sample_index: int) -> None:
    engine = Harness()
    engine.add(msgspec.structs.replace(fake_request("a", [1]), sample_index=sample_index))
    engine.run()
    assert engine.errors() == {"a": "invalid_request"}


@pytest.mark.parametrize(("prompt", "max_tokens", "fits"), [(500, 12, True), (500, 13, False), (1, 1 << 60, False)])
def test_prompt_and_max_tokens_must_fit_the_context(prompt: int, max_tokens: int, fits: bool) -> None:
    engine = Harness()
    engine.add(fake_request("a", [1] * prompt, max_tokens))
    engine.run()
    assert engine.errors() == ({} if fits else {"a": "context_length_exceeded"})


def test_an_id_in_use_is_refused_and_free_again_afterwards() -> None:
    engine = Harness()
    engine.add(fake_request("a", [1], 5))
    engine.core.step()
    engine.add(fake_request("a", [2], 5))
    errors = [output.error.code for output in engine.core.step() if output.error is not None]
    assert errors == ["invalid_request"]
    while engine.core.has_work:
        engine.core.step()
    engine.add(fake_request("a", [3], 5))
    engine.run()
    assert engine.tokens["a"] == expected_tokens([3], 5)


@pytest.mark.parametrize("name", ["max_num_seqs", "max_num_batched_tokens", "max_logit_rows", "pipeline_depth"])
def test_a_configuration_that_cannot_work_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Harness(None, **{name: 0})
