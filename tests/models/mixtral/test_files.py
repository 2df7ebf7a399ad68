"""Configs of Mixtral, and its files: int8 ones, stacks, llama.cpp's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import MODEL_ARCH
from safetensors.torch import load_file
from transformers import MixtralConfig

from app.models.architectures import parse_config
from app.models.config import ConfigError, ExpertsConfig, Rope
from app.quality.quantize import write
from app.store.files import find_weights, read_model
from tests.models.checkpoints import expected_logprobs, served_logprobs
from tests.models.expert_files import are_near, save_stacks, stacked
from tests.models.gguf_model import VOCAB_SIZE, is_the_model, permuted, write_model
from tests.models.mixtral.test_parity import FULL
from tests.models.test_config import windows_of
from tests.models.tiny import make_reference, save
from tests.runner.driver import runner_of
from tests.store.tiny import write_tokenizer

MIXTRAL_8X7B: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mixtral",
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}


def test_the_8x7b_of_the_hub() -> None:
    config = parse_config(MIXTRAL_8X7B)
    assert {layer.mlp for layer in config.layers} == {ExpertsConfig(count=8, chosen=2, width=14336)}
    assert config.attentions[0].rope == Rope(theta=1e6, width=128)
    assert set(windows_of(config)) == {None}
    assert parse_config(MixtralConfig(**MIXTRAL_8X7B).to_dict()) == config
    silent = {name: value for name, value in MIXTRAL_8X7B.items() if name not in ("num_local_experts", "rope_theta")}
    assert parse_config(silent) == config
    assert set(windows_of(parse_config({**MIXTRAL_8X7B, "sliding_window": 4096}))) == {4096}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": 4}, "num_local_experts = 8 and num_experts = 4 differ"),
        ({"num_local_experts": 0}, "num_local_experts = 0"),
        ({"num_local_experts": 1025}, "num_local_experts = 1025"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok = 9 is more than num_local_experts = 8"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"n_routed_experts": 8}, "n_routed_experts"),
        ({"model_type": "mistral"}, "model_type"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({**MIXTRAL_8X7B, **fields})


def test_tensors_of_all_experts_are_those_of_each(tmp_path: Path) -> None:
    reference = make_reference((MixtralConfig, FULL))
    published, stacks = save(reference, tmp_path / "each"), save_stacks(reference, tmp_path / "stacks")
    assert "model.layers.0.block_sparse_moe.experts.5.w3.weight" in load_file(published / "model.safetensors")
    assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(stacks / "model.safetensors")
    expected = served_logprobs(runner_of(published))
    assert torch.equal(served_logprobs(runner_of(stacks)), expected)
    torch.testing.assert_close(expected, expected_logprobs(published), rtol=0, atol=1e-4)


def test_an_int8_checkpoint_has_int8_experts_and_a_floating_router(tmp_path: Path) -> None:
    source = save(make_reference((MixtralConfig, FULL), vocab_size=VOCAB_SIZE), tmp_path / "model")
    write_tokenizer(source / "tokenizer.json")
    write(read_model("model", source, find_weights(source)), tmp_path / "int8")
    written = load_file(tmp_path / "int8" / "model.safetensors")
    assert written["model.layers.2.mlp.experts.5.down_proj.weight"].dtype == torch.int8
    assert written["model.layers.2.mlp.gate.weight"].dtype == torch.bfloat16
    are_near(served_logprobs(runner_of(tmp_path / "int8")), expected_logprobs(source))


@pytest.mark.parametrize("window", [None, 24])
def test_a_gguf_file_is_the_model_it_was_written_of(tmp_path: Path, window: int | None) -> None:
    reference = make_reference((MixtralConfig, FULL), vocab_size=VOCAB_SIZE, sliding_window=window)
    metadata = {
        "expert_count": 6,
        "expert_used_count": 2,
        "rope.freq_base": 1e6,
        "attention.sliding_window": window,
        "tokenizer.ggml.pre": "llama-bpe",
    }
    stored = permuted(reference)
    file = write_model(tmp_path / "m.gguf", stacked(reference), MODEL_ARCH.LLAMA, metadata, stored=stored)
    is_the_model(file, reference)
