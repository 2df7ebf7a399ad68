from __future__ import annotations

from typing import Any

import pytest
from transformers import GraniteMoeConfig, GraniteMoeSharedConfig

from tests.models.expert_files import ROUNDED_BFLOAT16, ROUNDED_INT8
from tests.models.parity import Loaded, ParityTests
from tests.models.served import ServedTests

SHAPE: dict[str, Any] = {
    "num_attention_heads": 4,
    "num_local_experts": 7,
    "num_experts_per_tok": 3,
    "embedding_multiplier": 6.0,
    "attention_multiplier": 0.11,
    "residual_multiplier": 0.22,
    "logits_scaling": 0.4,
}
SHARED: dict[str, Any] = {
    **SHAPE,
    "shared_intermediate_size": 52,
    "attention_bias": True,
    "tie_word_embeddings": True,
}
CONFIGS = {
    "experts": (GraniteMoeConfig, SHAPE),
    "shared": (GraniteMoeSharedConfig, SHARED),
    "nothing shared": (GraniteMoeSharedConfig, {**SHAPE, "shared_intermediate_size": 0}),
}


@pytest.fixture(scope="module", params=CONFIGS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(CONFIGS[request.param], tmp_path_factory.mktemp("granitemoe"))


class TestGraniteMoe(ParityTests, ServedTests):
    BFLOAT16, INT8 = ROUNDED_BFLOAT16, ROUNDED_INT8
