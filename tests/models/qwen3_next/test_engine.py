"""Recurrent states under the engine, by a real model: conversations hit, many fit, what is preempted goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedModel

from tests.models.scheduled import TOKENS, answers, engine_of, gives_transformers_tokens
from tests.models.tiny import make_reference, save

BLOCK = 16
NUM_CONVERSATIONS = 32


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    return make_reference("qwen3_next")


@pytest.fixture(scope="module")
def checkpoint(reference: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(reference, tmp_path_factory.mktemp("qwen3_next"))


def test_tokens_are_transformers_however_they_are_scheduled(reference: PreTrainedModel, checkpoint: Path) -> None:
    gives_transformers_tokens(reference, checkpoint, short=(9, 12))


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
    said = [[index, *TOKENS[index : index + 19]] for index in range(NUM_CONVERSATIONS)]
    plenty, short = engine_of(checkpoint, num_blocks=(80, 256)), engine_of(checkpoint, num_blocks=(32, 256))
    first = answers(plenty, said, 20)
    assert answers(short, said, 20) == first
    said = [[*tokens, *answer, 1, 2, 3] for tokens, answer in zip(said, first, strict=True)]
    assert answers(plenty, said, 4) == answers(short, said, 4)
    assert plenty.stats().prefix_hit_tokens_total == NUM_CONVERSATIONS * 2 * BLOCK
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
