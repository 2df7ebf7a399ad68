"""A Granite 4 out of a GGUF file, its tensors as llama.cpp's converter writes them, is that of its checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import MODEL_ARCH
from torch import Tensor
from transformers import PreTrainedModel

from app.checkpoints.gguf_header import read_gguf_header
from app.store.errors import StoreError
from app.store.gguf_config import config_json
from tests.models.expert_files import stacked
from tests.models.gguf_model import VOCAB_SIZE, Stored, is_the_model, permuted, write_model
from tests.models.tiny import make_reference
from tests.store.tiny import Array

METADATA = {
    "attention.head_count_kv": [0, 2],
    "attention.scale": 0.11,
    "embedding_scale": 6.0,
    "expert_shared_feed_forward_length": 52,
    "logit_scale": 0.4,
    "residual_scale": 0.22,
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 128,
    "ssm.state_size": 24,
    "ssm.time_step_rank": 4,
    "ssm.group_count": 1,
    "tokenizer.ggml.pre": "refact",
}
EXPERTS = {**METADATA, "expert_count": 6, "expert_used_count": 2, "rope.scaling.finetuned": False}
DENSE = {
    **METADATA,
    "attention.head_count_kv": [0, 2, 0],
    "ssm.group_count": 2,
    "ssm.conv_kernel": 3,
    "rope.scaling.finetuned": True,
}


def converted(reference: PreTrainedModel, groups: int) -> Stored:
    """The file's values of a checkpoint's tensor."""
    rows = permuted(reference)

    def stored(name: str, values: Array) -> Array:
        match name.split(".", 3)[-1]:
            case "mamba.A_log":
                return -np.exp(values)[:, None]
            case "mamba.D":
                return values[:, None]
            case "mamba.conv1d.weight":
                return np.ascontiguousarray(values.squeeze(1))
            case "mamba.norm.weight":
                return values.reshape(groups, -1)
        return rows(name, values)

    return stored


@dataclass(frozen=True)
class _Dense:
    """A model whose one MLP in each layer the converter calls so."""

    reference: Any

    @property
    def config(self) -> Any:
        return self.reference.config

    def state_dict(self) -> dict[str, Tensor]:
        tensors = stacked(self.reference).state_dict()
        down = ("shared_mlp.output_linear", "mlp.down_proj")
        return {name.replace("mlp.shared_expert", "mlp").replace(*down): tensor for name, tensor in tensors.items()}


def test_one_with_experts_is_the_model_it_was_written_of(tmp_path: Path) -> None:
    reference = make_reference("granitemoehybrid", vocab_size=VOCAB_SIZE)
    stored = converted(reference, 1)
    file = write_model(tmp_path / "m.gguf", stacked(reference), MODEL_ARCH.GRANITE_HYBRID, EXPERTS, stored=stored)
    is_the_model(file, reference)


def test_a_dense_one_is_the_model_it_was_written_of(tmp_path: Path) -> None:
    reference = make_reference(
        "granitemoehybrid_groups", vocab_size=VOCAB_SIZE, attention_bias=False, time_step_limit=[0.0, math.inf]
    )
    stored = converted(reference, 2)
    file = write_model(tmp_path / "m.gguf", _Dense(reference), MODEL_ARCH.GRANITE_HYBRID, DENSE, stored=stored)
    is_the_model(file, reference)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"attention.head_count_kv": 2}, "does not say which layers have attention"),
        ({"attention.head_count_kv": [2, 1]}, "is not 0 or one other number"),
        ({"attention.head_count_kv": [0, 0]}, "is not 0 or one other number"),
        ({"ssm.inner_size": 130}, r"4 heads in ssm\.inner_size = 130"),
    ],
)
def test_what_does_not_add_up_is_an_error(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    reference = make_reference("granitemoehybrid", vocab_size=VOCAB_SIZE)
    stored = converted(reference, 1)
    given = {**EXPERTS, **metadata}
    file = write_model(tmp_path / "m.gguf", stacked(reference), MODEL_ARCH.GRANITE_HYBRID, given, stored=stored)
    with pytest.raises(StoreError, match=message):
        config_json(read_gguf_header(file))
