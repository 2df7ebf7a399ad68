from __future__ import annotations

from typing import Any

import pytest
from transformers import Qwen2MoeConfig

from tests.models.expert_files import ROUNDED_BFLOAT16, ROUNDED_INT8
from tests.models.parity import Loaded, ParityTests
from tests.models.served import ServedTests

SHAPE: dict[str, Any] = {
    "num_attention_heads": 4,
    "num_experts": 9,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 36,
    "shared_expert_intermediate_size": 100,
}
MIXED: dict[str, Any] = {
    **SHAPE,
    "num_hidden_layers": 4,
    "decoder_sparse_step": 2,
    "mlp_only_layers": [1],
    "norm_topk_prob": True,
    "qkv_bias": False,
    "use_sliding_window": True,
    "sliding_window": 24,
    "max_window_layers": 3,
    "tie_word_embeddings": True,
}
"""Experts in the last layer alone; the first and third slide."""


@pytest.fixture(scope="module", params=[SHAPE, MIXED], ids=["sparse", "mixed"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded((Qwen2MoeConfig, request.param), tmp_path_factory.mktemp("qwen2moe"))


class TestQwen2Moe(ParityTests, ServedTests):
    BFLOAT16, INT8 = ROUNDED_BFLOAT16, ROUNDED_INT8
