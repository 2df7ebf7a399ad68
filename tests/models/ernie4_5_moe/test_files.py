"""Configs of ERNIE 4.5 MoE, and its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import MODEL_ARCH
from safetensors.torch import load_file, save_file
from transformers import Ernie4_5_MoeConfig

from app.models.architectures import parse_config
from app.models.config import ConfigError, ExpertsConfig, MlpConfig, Rope
from tests.models.checkpoints import served_logprobs
from tests.models.ernie4_5_moe.test_parity import SHAPE
from tests.models.expert_files import save_stacks, stacked
from tests.models.gguf_model import VOCAB_SIZE, is_the_model, write_model
from tests.models.tiny import make_reference, save
from tests.runner.driver import runner_of
from tests.store.tiny import Array

ERNIE_4_5_21B_A3B: dict[str, Any] = {
    "architectures": ["Ernie4_5_MoeForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "max_position_embeddings": 131072,
    "model_type": "ernie4_5_moe",
    "moe_capacity": [64, 64, 64],
    "moe_gate": "topk",
    "moe_intermediate_size": 1536,
    "moe_k": 6,
    "moe_layer_end_index": 27,
    "moe_layer_interval": 1,
    "moe_layer_start_index": 1,
    "moe_num_experts": 64,
    "moe_num_shared_experts": 2,
    "moe_use_aux_free": True,
    "num_attention_heads": 20,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "use_bias": False,
    "vocab_size": 103424,
}
METADATA = {
    "rope.freq_base": 5e5,
    "expert_count": 9,
    "expert_used_count": 3,
    "expert_feed_forward_length": 36,
    "expert_shared_count": 2,
    "interleave_moe_layer_step": 1,
    "leading_dense_block_count": 1,
    "tokenizer.ggml.pre": "llama-bpe",
}


def test_the_21b_a3b_of_the_hub() -> None:
    config = parse_config(ERNIE_4_5_21B_A3B)
    experts = ExpertsConfig(count=64, chosen=6, width=1536, least_sum=1e-12, correction=True, shared_width=3072)
    assert [layer.mlp for layer in config.layers] == [MlpConfig(width=12288), *[experts] * 27]
    assert {attention.rope for attention in config.attentions} == {Rope(theta=5e5, width=128, interleaved=True)}
    assert parse_config(Ernie4_5_MoeConfig(**ERNIE_4_5_21B_A3B).to_dict()) == config
    silent = {key: value for key, value in ERNIE_4_5_21B_A3B.items() if not key.startswith(("moe_", "rope_", "tie_"))}
    assert parse_config(silent) == config


@pytest.mark.parametrize(
    ("fields", "sparse"),
    [
        ({"moe_layer_start_index": 3}, [3, 4, 5]),
        ({"moe_layer_end_index": 2}, [1, 2]),
        ({"moe_layer_end_index": -1, "moe_layer_interval": 2}, [1, 3, 5]),
        ({"moe_layer_start_index": 0, "moe_layer_end_index": 0}, [0]),
    ],
)
def test_which_layers_have_experts(fields: dict[str, Any], sparse: list[int]) -> None:
    config = parse_config({**ERNIE_4_5_21B_A3B, "num_hidden_layers": 6, **fields})
    assert [index for index, layer in enumerate(config.layers) if layer.mlp.kind == "experts"] == sparse


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_bias": True}, "use_bias"),
        ({"num_experts": 8}, "moe_num_experts = 64 and num_experts = 8 differ"),
        ({"num_experts_per_tok": 8}, "moe_k = 6 and num_experts_per_tok = 8 differ"),
        ({"moe_k": 65}, "moe_k = 65 is more than moe_num_experts = 64"),
        ({"moe_norm_min": -1.0}, "moe_norm_min"),
        ({"moe_intermediate_size": [1536, 512]}, "moe_intermediate_size"),
        ({"model_type": "ernie4_5"}, "model_type"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({**ERNIE_4_5_21B_A3B, **fields})


def test_tensors_as_they_are_in_memory_are_those_of_files(tmp_path: Path) -> None:
    reference = make_reference((Ernie4_5_MoeConfig, SHAPE))
    published, stacks = save(reference, tmp_path / "each"), save_stacks(reference, tmp_path / "stacks")
    tensors = load_file(published / "model.safetensors")
    assert tensors["model.layers.1.mlp.moe_statics.e_score_correction_bias"].shape == (1, 9)
    expected = served_logprobs(runner_of(published))
    assert torch.equal(served_logprobs(runner_of(stacks)), expected)
    drafting = {"model.mtp_block.0.mlp.up_proj.weight": torch.ones(2, 2)}
    save_file(tensors | drafting, published / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(served_logprobs(runner_of(published)), expected)


def stored(name: str, values: Array) -> Array:
    """The correction as the converter squeezes it."""
    return values[0] if name.endswith("correction.bias") else values


def test_a_gguf_file_is_the_model_it_was_written_of(tmp_path: Path) -> None:
    reference = make_reference((Ernie4_5_MoeConfig, SHAPE), vocab_size=VOCAB_SIZE)
    file = write_model(tmp_path / "m.gguf", stacked(reference), MODEL_ARCH.ERNIE4_5_MOE, METADATA, stored=stored)
    is_the_model(file, reference)
