"""LFM2s with experts: parity, and their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.expert_files import ROUNDED_BFLOAT16, ROUNDED_INT8, save_stacks
from tests.models.parity import SHUFFLED_BLOCKS, TOKENS, Loaded, ParityTests, close
from tests.models.scheduled import gives_transformers_tokens
from tests.models.served import ServedTests
from tests.models.tiny import PagedExecution, load, make_reference, reference_logits


@pytest.fixture(scope="module", params=["lfm2_moe", "lfm2_moe_plain"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(request.param, tmp_path_factory.mktemp(request.param))


class TestExperts(ParityTests, ServedTests):
    BFLOAT16, INT8 = ROUNDED_BFLOAT16, ROUNDED_INT8

    def test_tokens_are_transformers_however_they_are_scheduled(self, loaded: Loaded) -> None:
        """As of all families, but for two groups of blocks."""
        gives_transformers_tokens(loaded.reference, loaded.directory, short=(12, 9))


def test_tensors_of_all_experts_are_those_of_each(tmp_path: Path) -> None:
    reference = make_reference("lfm2_moe")
    logits = PagedExecution(*load(save_stacks(reference, tmp_path / "stacks"))).sequence(TOKENS, [100], SHUFFLED_BLOCKS)
    close(logits, reference_logits(reference, TOKENS))
