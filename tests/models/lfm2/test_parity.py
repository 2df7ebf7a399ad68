"""Dense LFM2s: parity, and states of convolutions under the engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.parity import Loaded, ParityTests
from tests.models.scheduled import TOKENS, answers, engine_of, gives_transformers_tokens
from tests.models.served import InterpretedTests, ServedTests

BLOCK = 16


@pytest.fixture(scope="module", params=["lfm2", "lfm2_biases"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(request.param, tmp_path_factory.mktemp(request.param))


class TestLfm2(ParityTests, ServedTests):
    def test_tokens_are_transformers_however_they_are_scheduled(self, loaded: Loaded) -> None:
        """As of all families, but for two groups of blocks."""
        gives_transformers_tokens(loaded.reference, loaded.directory, short=(12, 9))


class TestLfm2Interpreted(InterpretedTests):
    VARIANT = "lfm2_biases"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Loaded("lfm2", tmp_path_factory.mktemp("checkpoint")).directory


def test_turns_of_a_conversation_hit_what_there_is(checkpoint: Path) -> None:
    engine = engine_of(checkpoint)
    said, could_hit = list[int](), 0
    for turn in range(6):
        said += TOKENS[turn * 9 : turn * 9 + 9]
        could_hit += (len(said) - 10) // BLOCK * BLOCK if turn else 0  # the last token of an answer is not computed
        [answer] = answers(engine, [said], 11)
        said += answer
    hits = engine.stats().prefix_hit_tokens_total
    assert 0.9 * could_hit < hits <= could_hit
    [alone] = answers(engine_of(checkpoint, enable_prefix_caching=False), [said[:-11]], 11)
    assert said[-11:] == alone


def test_prompts_that_share_a_beginning_hit_from_the_third_on(checkpoint: Path) -> None:
    """The second finds keys and values alone, and leaves the state where the prompts part."""
    prompts = [[*TOKENS[:70], *TOKENS[start : start + 30]] for start in (200, 250, 300)]
    plain = engine_of(checkpoint, enable_prefix_caching=False)
    expected = answers(plain, prompts, 4)
    engine = engine_of(checkpoint, max_num_batched_tokens=512)
    assert answers(engine, prompts[:2], 4) == expected[:2]
    assert answers(engine, prompts[2:], 4) == expected[2:]
    assert engine.stats().prefix_hit_tokens_total == 64
