"""Recurrent states under the engine, by a real model: conversations hit, many fit, what is preempted goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from app.contract.request import GenerateRequest, SamplingParams
from app.engine.core import EngineCore
from tests.models.tiny import make_reference, reference_logits, save
from tests.runner.driver import engine_config, runner_of

BLOCK = 16
torch.manual_seed(5)
TOKENS: list[int] = torch.randint(128, (512,)).tolist()


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    return make_reference("qwen3_next")


@pytest.fixture(scope="module")
def checkpoint(reference: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(reference, tmp_path_factory.mktemp("qwen3_next"))


def engine_of(checkpoint: Path, **changes: Any) -> EngineCore:
    options = {"kernels": "reference", "integrity_checks": True, **changes}
    return EngineCore(runner_of(checkpoint, **options), engine_config(checkpoint, **options))


def answers(engine: EngineCore, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    for index, prompt in enumerate(prompts):
        engine.add_request(GenerateRequest(request_id=str(index), prompt_token_ids=prompt, sampling=sampling, seed=0))
    tokens: list[list[int]] = [[] for _ in prompts]
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            tokens[int(output.request_id)] += output.new_token_ids
        engine.check_integrity()
    return tokens


def greedy(reference: PreTrainedModel, prompt: list[int], num_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(int(reference_logits(reference, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def test_tokens_are_transformers_however_they_are_scheduled(reference: PreTrainedModel, checkpoint: Path) -> None:
    prompts = [[*TOKENS[:70], 1, 2], [*TOKENS[:70], 3], TOKENS[100:103], TOKENS[:33]]
    expected = [greedy(reference, prompt, 32) for prompt in prompts]
    assert answers(engine_of(checkpoint, max_num_batched_tokens=128), prompts, 32) == expected, "batched"
    chunked = engine_of(checkpoint, max_num_batched_tokens=20)
    assert answers(chunked, prompts, 32) == expected
    assert answers(chunked, prompts, 32) == expected, "behind prefixes"
    assert chunked.stats().prefix_hit_tokens_total > 0
    short = engine_of(checkpoint, max_num_batched_tokens=48, num_blocks=(9, 12))
    assert answers(short, prompts, 32) == expected
    assert short.stats().preemptions_total > 0


def test_ten_turns_of_a_conversation_hit_what_there_is(checkpoint: Path) -> None:
    engine = engine_of(checkpoint)
    said, could_hit = list[int](), 0
    for turn in range(10):
        said += TOKENS[turn * 9 : turn * 9 + 9]
        could_hit += (len(said) - 10) // BLOCK * BLOCK if turn else 0  # the last token of an answer is not computed
        [answer] = answers(engine, [said], 11)
        said += answer
    hits = engine.stats().prefix_hit_tokens_total
    assert 0.9 * could_hit < hits <= could_hit
    [alone] = answers(engine_of(checkpoint, enable_prefix_caching=False), [said[:-11]], 11)
    assert said[-11:] == alone


def test_states_of_many_conversations_stay_within_the_budget(checkpoint: Path) -> None:
    """Each leaves two: where its prompt passed a boundary, and where its answer did."""
    said = [[index, *TOKENS[index : index + 19]] for index in range(64)]
    plenty, short = engine_of(checkpoint, num_blocks=(160, 512)), engine_of(checkpoint, num_blocks=(64, 512))
    first = answers(plenty, said, 20)
    assert answers(short, said, 20) == first
    said = [[*tokens, *answer, 1, 2, 3] for tokens, answer in zip(said, first, strict=True)]
    assert answers(plenty, said, 4) == answers(short, said, 4)
    assert plenty.stats().prefix_hit_tokens_total == 64 * 2 * BLOCK
    assert short.stats().preemptions_total == 0


def test_prompts_that_share_a_beginning_hit_from_the_third_on(checkpoint: Path) -> None:
    """The second finds keys and values alone, and leaves the state where the prompts part."""
    prompts = [[*TOKENS[:150], *TOKENS[start : start + 30]] for start in (200, 250, 300, 350)]
    plain = engine_of(checkpoint, enable_prefix_caching=False, max_num_batched_tokens=128)
    expected = answers(plain, prompts, 4)
    engine = engine_of(checkpoint, max_num_batched_tokens=64)
    hits = []
    for prompt, tokens in zip(prompts, expected, strict=True):
        before = engine.stats().prefix_hit_tokens_total
        assert answers(engine, [prompt], 4) == [tokens]
        hits.append(engine.stats().prefix_hit_tokens_total - before)
    assert hits == [0, 128, 144, 144], "in the second a boundary at which a row of the first happened to end"
    at_once = engine_of(checkpoint, max_num_batched_tokens=512)
    assert answers(at_once, prompts[:2], 4) == expected[:2], "in one step"
    assert answers(at_once, prompts[2:], 4) == expected[2:]
    assert at_once.stats().prefix_hit_tokens_total == 2 * 144
