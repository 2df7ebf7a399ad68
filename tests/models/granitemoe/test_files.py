"""Configs of Granite-MoE, and its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import MODEL_ARCH
from safetensors.torch import load_file
from transformers import GraniteMoeConfig, GraniteMoeSharedConfig

from app.models.architectures import parse_config
from app.models.config import ConfigError, ExpertsConfig
from app.quality.quantize import write
from app.store.files import find_weights, read_model
from tests.models.checkpoints import expected_logprobs, served_logprobs
from tests.models.expert_files import are_near, save_stacks, stacked
from tests.models.gguf_model import VOCAB_SIZE, is_the_model, permuted, write_model
from tests.models.granitemoe.test_parity import CONFIGS
from tests.models.tiny import make_reference, save
from tests.runner.driver import runner_of
from tests.store.tiny import write_tokenizer

GRANITE_3_1B_A400M: dict[str, Any] = {
    "architectures": ["GraniteMoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.1,
    "attention_multiplier": 0.015625,
    "embedding_multiplier": 12.0,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 512,
    "logits_scaling": 6.0,
    "max_position_embeddings": 4096,
    "model_type": "granitemoe",
    "num_attention_heads": 16,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000,
    "router_aux_loss_coef": 0.0,
    "tie_word_embeddings": True,
    "vocab_size": 49155,
}
SHARED = {
    **GRANITE_3_1B_A400M,
    "architectures": ["GraniteMoeSharedForCausalLM"],
    "model_type": "granitemoeshared",
    "shared_intermediate_size": 1024,
}
METADATA = {
    "expert_count": 7,
    "expert_used_count": 3,
    "attention.scale": 0.11,
    "embedding_scale": 6.0,
    "residual_scale": 0.22,
    "logit_scale": 0.4,
    "tokenizer.ggml.pre": "refact",
}


def test_the_1b_a400m_of_the_hub() -> None:
    config = parse_config(GRANITE_3_1B_A400M)
    experts = ExpertsConfig(count=32, chosen=8, width=512, scoring="softmax chosen", normalise=False, output_scale=0.22)
    assert {layer.mlp for layer in config.layers} == {experts}
    assert (config.embedding_scale, config.logit_scale) == (12, 1 / 6)
    assert {(attention.scale, attention.output_scale) for attention in config.attentions} == {(0.015625, 0.22)}
    assert parse_config(GraniteMoeConfig(**GRANITE_3_1B_A400M).to_dict()) == config


def test_an_mlp_that_every_token_goes_through() -> None:
    [mlp] = {layer.mlp for layer in parse_config(SHARED).layers}
    assert isinstance(mlp, ExpertsConfig)
    assert (mlp.shared_width, mlp.shared_gate) == (1024, False)
    assert parse_config(GraniteMoeSharedConfig(**SHARED).to_dict()) == parse_config(SHARED)
    [mlp] = {layer.mlp for layer in parse_config({**SHARED, "shared_intermediate_size": 0}).layers}
    assert isinstance(mlp, ExpertsConfig)
    assert mlp.shared_width is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_local_experts": 0}, "num_local_experts = 0"),
        ({"num_experts_per_tok": 33}, "num_experts_per_tok = 33 is more than num_local_experts = 32"),
        ({"residual_multiplier": 0}, "residual_multiplier"),
        ({"logits_scaling": -1}, "logits_scaling"),
        ({"n_routed_experts": 8}, "n_routed_experts"),
        ({"model_type": "granite"}, "model_type"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({**GRANITE_3_1B_A400M, **fields})


@pytest.mark.parametrize("name", ["experts", "shared"])
def test_tensors_as_they_are_in_memory_are_those_of_files(tmp_path: Path, name: str) -> None:
    reference = make_reference(CONFIGS[name])
    published, stacks = save(reference, tmp_path / "each"), save_stacks(reference, tmp_path / "stacks")
    assert "model.layers.0.block_sparse_moe.input_linear.weight" in load_file(published / "model.safetensors")
    assert torch.equal(served_logprobs(runner_of(stacks)), served_logprobs(runner_of(published)))


def test_an_int8_checkpoint_is_near(tmp_path: Path) -> None:
    source = save(make_reference(CONFIGS["shared"], vocab_size=VOCAB_SIZE), tmp_path / "model")
    write_tokenizer(source / "tokenizer.json")
    write(read_model("model", source, find_weights(source)), tmp_path / "int8")
    written = load_file(tmp_path / "int8" / "model.safetensors")
    assert written["model.layers.2.mlp.experts.6.up_proj.weight"].dtype == torch.int8
    assert written["model.layers.2.mlp.shared_expert.up_proj.weight"].dtype == torch.int8
    assert written["model.layers.2.mlp.gate.weight"].dtype == torch.bfloat16
    are_near(served_logprobs(runner_of(tmp_path / "int8")), expected_logprobs(source))


@pytest.mark.parametrize("name", ["experts", "shared"])
def test_a_gguf_file_is_the_model_it_was_written_of(tmp_path: Path, name: str) -> None:
    reference = make_reference(CONFIGS[name], vocab_size=VOCAB_SIZE, attention_bias=False)
    shared = 52 if name == "shared" else None
    metadata = {**METADATA, "expert_shared_feed_forward_length": shared}
    file = write_model(
        tmp_path / "m.gguf", stacked(reference), MODEL_ARCH.GRANITE_MOE, metadata, stored=permuted(reference)
    )
    is_the_model(file, reference)
