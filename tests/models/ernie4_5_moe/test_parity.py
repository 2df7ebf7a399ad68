from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Ernie4_5_MoeConfig

from tests.models.expert_files import ROUNDED_BFLOAT16, ROUNDED_INT8
from tests.models.parity import Loaded, ParityTests
from tests.models.served import ServedTests

SHAPE: dict[str, Any] = {
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "moe_num_experts": 9,
    "moe_k": 3,
    "moe_intermediate_size": 36,
    "moe_num_shared_experts": 2,
    "tie_word_embeddings": True,
}
SOME: dict[str, Any] = {
    **SHAPE,
    "moe_num_shared_experts": 0,
    "moe_layer_start_index": 0,
    "moe_layer_end_index": 2,
    "moe_layer_interval": 2,
    "moe_norm_min": 0.3,
    "tie_word_embeddings": False,
}
"""Experts in the second layer alone, few of whose weights reach the least sum."""


@pytest.fixture(scope="module", params=[SHAPE, SOME], ids=["shared", "some"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded((Ernie4_5_MoeConfig, request.param), tmp_path_factory.mktemp("ernie4_5_moe"))


class TestErnie(ParityTests, ServedTests):
    BFLOAT16, INT8 = ROUNDED_BFLOAT16, ROUNDED_INT8

    def test_the_correction_has_a_say(self, loaded: Loaded) -> None:
        corrections = [value for name, value in loaded.reference.state_dict().items() if "correction" in name]
        assert corrections
        assert all(torch.count_nonzero(value) for value in corrections)
