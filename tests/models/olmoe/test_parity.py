from __future__ import annotations

from typing import Any

import pytest
from transformers import OlmoeConfig

from tests.models.expert_files import ROUNDED_BFLOAT16, ROUNDED_INT8
from tests.models.parity import Loaded, ParityTests
from tests.models.served import ServedTests

SHAPE: dict[str, Any] = {"num_attention_heads": 4, "num_experts": 9, "num_experts_per_tok": 3}
NORMALISED: dict[str, Any] = {
    **SHAPE,
    "num_key_value_heads": 4,
    "norm_topk_prob": True,
    "attention_bias": True,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module", params=[SHAPE, NORMALISED], ids=["grouped", "normalised"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded((OlmoeConfig, request.param), tmp_path_factory.mktemp("olmoe"))


class TestOlmoe(ParityTests, ServedTests):
    BFLOAT16, INT8 = ROUNDED_BFLOAT16, ROUNDED_INT8
