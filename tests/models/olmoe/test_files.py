"""Configs of OLMoE, and a GGUF file of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import MODEL_ARCH
from transformers import OlmoeConfig

from app.models.architectures import parse_config
from app.models.config import ConfigError, ExpertsConfig
from tests.models.checkpoints import served_logprobs
from tests.models.expert_files import save_stacks, stacked
from tests.models.gguf_model import VOCAB_SIZE, is_the_model, write_model
from tests.models.olmoe.test_parity import SHAPE
from tests.models.tiny import make_reference, save
from tests.runner.driver import runner_of

OLMOE_1B_7B: dict[str, Any] = {
    "architectures": ["OlmoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "clip_qkv": None,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "max_position_embeddings": 4096,
    "model_type": "olmoe",
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 16,
    "num_key_value_heads": 16,
    "output_router_logits": False,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "router_aux_loss_coef": 0.01,
    "tie_word_embeddings": False,
    "vocab_size": 50304,
}


def test_the_1b_7b_of_the_hub() -> None:
    config = parse_config(OLMOE_1B_7B)
    assert {layer.mlp for layer in config.layers} == {ExpertsConfig(count=64, chosen=8, width=1024, normalise=False)}
    assert {attention.qk_norm_whole for attention in config.attentions} == {True}
    assert parse_config(OlmoeConfig(**OLMOE_1B_7B).to_dict()) == config
    silent = ("num_experts", "num_experts_per_tok", "num_key_value_heads", "rms_norm_eps")
    assert parse_config({key: value for key, value in OLMOE_1B_7B.items() if key not in silent}) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clip_qkv": 8.0}, "clip_qkv = 8.0"),
        ({"num_experts": 0}, "num_experts = 0"),
        ({"num_local_experts": 8}, "num_experts = 64 and num_local_experts = 8 differ"),
        ({"num_experts_per_tok": 65}, "num_experts_per_tok = 65"),
        ({"sliding_window": 64}, "sliding_window"),
        ({"model_type": "olmo2"}, "model_type"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({**OLMOE_1B_7B, **fields})


def test_tensors_of_all_experts_are_those_of_each(tmp_path: Path) -> None:
    reference = make_reference((OlmoeConfig, SHAPE))
    published, stacks = save(reference, tmp_path / "each"), save_stacks(reference, tmp_path / "stacks")
    assert torch.equal(served_logprobs(runner_of(stacks)), served_logprobs(runner_of(published)))


def test_a_gguf_file_is_the_model_it_was_written_of(tmp_path: Path) -> None:
    reference = make_reference((OlmoeConfig, SHAPE), vocab_size=VOCAB_SIZE)
    metadata = {"expert_count": 9, "expert_used_count": 3, "tokenizer.ggml.pre": "olmo"}
    file = write_model(tmp_path / "m.gguf", stacked(reference), MODEL_ARCH.OLMOE, metadata)
    is_the_model(file, reference)
