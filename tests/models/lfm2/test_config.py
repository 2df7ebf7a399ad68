"""What ``config.json`` and files of published checkpoints say, text alone or beside what sees images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from app.cli import main
from app.kernels import dispatch
from app.models.architectures import parse_config
from app.models.config import AttentionConfig, ConfigError, ExpertsConfig, MlpConfig, Rope, ShortConvConfig
from app.runner.loading import read_model_config
from tests.models.parity import SHUFFLED_BLOCKS, TOKENS
from tests.models.tiny import PagedExecution, load, make_reference, save

LFM2: dict[str, Any] = {
    "architectures": ["Lfm2ForCausalLM"],
    "block_auto_adjust_ff_dim": True,
    "block_dim": 2048,
    "block_ff_dim": 12288,
    "block_ffn_dim_multiplier": 1.0,
    "block_multiple_of": 256,
    "block_norm_eps": 1e-05,
    "block_use_swiglu": True,
    "bos_token_id": 1,
    "conv_L_cache": 3,
    "conv_bias": False,
    "conv_dim": 2048,
    "eos_token_id": 7,
    "full_attn_idxs": [2, 5, 8, 10, 12, 14],
    "hidden_size": 2048,
    "max_position_embeddings": 128000,
    "model_type": "lfm2",
    "norm_eps": 1e-05,
    "num_attention_heads": 32,
    "num_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rope_theta": 1000000.0,
    "theta": 1000000.0,
    "tie_embedding": True,
    "use_pos_enc": True,
    "vocab_size": 65536,
}
LFM2_MOE: dict[str, Any] = {
    "architectures": ["Lfm2MoeForCausalLM"],
    "conv_L_cache": 3,
    "conv_bias": False,
    "hidden_size": 2048,
    "intermediate_size": 7168,
    "layer_types": ["conv", "conv", "full_attention"] * 8,
    "max_position_embeddings": 128000,
    "model_type": "lfm2_moe",
    "moe_intermediate_size": 1792,
    "norm_eps": 1e-05,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_dense_layers": 2,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "rope_theta": 1000000.0,
    "routed_scaling_factor": 1.0,
    "use_expert_bias": True,
    "vocab_size": 65536,
}


def test_a_dense_model() -> None:
    config = parse_config(LFM2)
    assert (config.norm_eps, config.context_length, config.tie_word_embeddings) == (1e-5, 128000, True)
    conv, attention = config.layers[0].mixer, config.layers[2].mixer
    assert conv == ShortConvConfig(channels=2048, conv_width=3)
    assert isinstance(attention, AttentionConfig)
    assert (attention.num_heads, attention.num_kv_heads, attention.head_dim, attention.qk_norm) == (32, 8, 64, True)
    assert attention.rope == Rope(theta=1e6, width=64)
    assert [i for i, layer in enumerate(config.layers) if layer.mixer == attention] == LFM2["full_attn_idxs"]
    assert {layer.mlp for layer in config.layers} == {MlpConfig(width=8192)}
    types = ["full_attention" if i in LFM2["full_attn_idxs"] else "conv" for i in range(16)]
    assert parse_config({**LFM2, "layer_types": types, "full_attn_idxs": None}) == config


@pytest.mark.parametrize(
    ("fields", "width"),
    [
        ({"block_ffn_dim_multiplier": 1.1}, 9216),
        ({"block_ffn_dim_multiplier": None, "block_ff_dim": 100}, 66),
        ({"block_auto_adjust_ff_dim": False}, 12288),
        ({"block_ff_dim": None, "intermediate_size": 6656}, 4608),
    ],
)
def test_the_width_of_a_dense_layer_is_adjusted(fields: dict[str, Any], width: int) -> None:
    assert parse_config({**LFM2, **fields}).layers[0].mlp == MlpConfig(width=width)


def test_a_model_with_experts() -> None:
    config = parse_config(LFM2_MOE)
    experts = ExpertsConfig(count=32, chosen=4, width=1792, scoring="sigmoid", sum_offset=1e-6, correction=True)
    assert [layer.mlp for layer in config.layers] == [MlpConfig(width=7168)] * 2 + [experts] * 22
    assert [layer.mixer.kind for layer in config.layers] == ["conv", "conv", "attention"] * 8
    plain = {"use_expert_bias": False, "norm_topk_prob": False, "routed_scaling_factor": 2.0, "num_dense_layers": 0}
    expected = ExpertsConfig(count=32, chosen=4, width=1792, scoring="sigmoid", normalise=False, scale=2.0)
    assert {layer.mlp for layer in parse_config({**LFM2_MOE, **plain}).layers} == {expected}


def test_silence_about_experts_is_what_transformers_takes_it_for() -> None:
    says = ("norm", "experts", "moe_", "conv_", "dense", "routed", "rope_theta", "key_value")
    silent = {name: value for name, value in LFM2_MOE.items() if not any(said in name for said in says)}
    assert parse_config(silent) == parse_config(LFM2_MOE)


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        (LFM2, "block_ffn_dim_multiplier", 0.0),
        (LFM2, "block_ffn_dim_multiplier", 1e6),
        (LFM2, "conv_L_cache", 1),
        (LFM2, "hidden_act", "gelu"),
        (LFM2, "layer_types", ["conv"]),
        (LFM2, "layer_types", ["linear_attention"] * 16),
        (LFM2, "model_type", "lfm2_moe"),
        (LFM2, "num_experts", 8),
        (LFM2, "sliding_window", 4096),
        (LFM2_MOE, "num_experts", 0),
        (LFM2_MOE, "num_experts_per_tok", 33),
        (LFM2_MOE, "num_local_experts", 8),
    ],
)
def test_what_is_not_served_is_refused_by_name(given: dict[str, Any], field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        parse_config({**given, field: value})


def with_images(text: dict[str, Any], **fields: Any) -> dict[str, Any]:
    architectures = ["Lfm2VlForConditionalGeneration"]
    return {
        "architectures": architectures,
        "model_type": "lfm2_vl",
        "projector_hidden_act": "gelu",
        "text_config": text,
        "vision_config": {"model_type": "siglip2_vision_model"},
        **fields,
    }


def test_the_text_part_of_a_model_that_sees_images_is_either_of_the_others() -> None:
    for text in (LFM2, LFM2_MOE):
        own = {name: value for name, value in text.items() if name != "architectures"}
        assert parse_config(with_images(own)).layers == parse_config(text).layers
    assert parse_config(with_images(LFM2)).tie_word_embeddings
    assert not parse_config(with_images(LFM2, tie_embedding=False)).tie_word_embeddings
    assert not parse_config(with_images(LFM2, tie_word_embeddings=False)).tie_word_embeddings
    with pytest.raises(ConfigError, match="model_type = 'llama'"):
        parse_config(with_images({**LFM2, "model_type": "llama"}))


@pytest.mark.parametrize("variant", ["lfm2", "lfm2_moe"])
def test_files_with_images_give_the_same_logits(tmp_path: Path, variant: str) -> None:
    reference = make_reference(variant)
    text = save(reference, tmp_path / "text")
    expected = PagedExecution(*load(text)).sequence(TOKENS, [100], SHUFFLED_BLOCKS)
    tensors = {
        name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in load_file(text / "model.safetensors").items()
    }
    tensors |= {
        "model.vision_tower.vision_model.encoder.layers.0.self_attn.out_proj.weight": torch.ones(2, 2),
        "model.multi_modal_projector.linear_1.bias": torch.ones(2),
    }
    both = tmp_path / "both"
    both.mkdir()
    save_file(tensors, both / "model.safetensors")
    tied = reference.config.tie_word_embeddings
    config = with_images(json.loads((text / "config.json").read_text()), tie_word_embeddings=tied)
    (both / "config.json").write_text(json.dumps(config))
    assert read_model_config(both, [both / "model.safetensors"]).tie_word_embeddings == tied
    assert torch.equal(PagedExecution(*load(both)).sequence(TOKENS, [100], SHUFFLED_BLOCKS), expected)


def test_memory_is_planned_from_the_config_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LFM2))
    result = CliRunner().invoke(main, ["plan", str(tmp_path), "--gpu-memory", "80GiB", "--json"])
    dispatch.configure(dispatch.Mode.AUTO, threads=1)
    assert result.exit_code == 0, result.stderr
    row = json.loads(result.stdout)
    pages = 6 * 2 * 8 * 64 * 2  # bytes a token of keys and values in bf16
    states = row["kv_cache"] - row["kv_cache_tokens"] * pages
    assert states > 0
    assert states % (10 * 2 * 2048 * 2) == 0, "inputs of ten layers, two each, in bf16"
