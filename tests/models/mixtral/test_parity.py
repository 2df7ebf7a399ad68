from __future__ import annotations

from typing import Any

import pytest
from transformers import MixtralConfig

from tests.models.expert_files import ROUNDED_BFLOAT16, ROUNDED_INT8
from tests.models.parity import Loaded, ParityTests
from tests.models.served import ServedTests

SHAPE: dict[str, Any] = {"num_local_experts": 6, "num_experts_per_tok": 2}
SLIDING: dict[str, Any] = {**SHAPE, "head_dim": 16, "sliding_window": 64, "tie_word_embeddings": True}
FULL: dict[str, Any] = {**SHAPE, "num_attention_heads": 4}


@pytest.fixture(scope="module", params=[FULL, SLIDING], ids=["full", "sliding"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded((MixtralConfig, request.param), tmp_path_factory.mktemp("mixtral"))


class TestMixtral(ParityTests, ServedTests):
    BFLOAT16, INT8 = ROUNDED_BFLOAT16, ROUNDED_INT8
