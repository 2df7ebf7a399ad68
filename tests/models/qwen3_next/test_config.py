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
from app.models.config import AttentionConfig, ConfigError, DeltaConfig, MlpConfig, Rope
from app.runner.loading import read_model_config
from tests.models.parity import SHUFFLED_BLOCKS, TOKENS
from tests.models.tiny import PagedExecution, load, make_reference, save

SHARED: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 262144,
    "num_attention_heads": 16,
    "rms_norm_eps": 1e-06,
    "use_cache": True,
}
QWEN3_5: dict[str, Any] = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "image_token_id": 248056,
    "model_type": "qwen3_5",
    "text_config": {
        **SHARED,
        "attn_output_gate": True,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 8,
        "linear_num_value_heads": 32,
        "mamba_ssm_dtype": "float32",
        "mlp_only_layers": [],
        "model_type": "qwen3_5_text",
        "mtp_num_hidden_layers": 1,
        "num_hidden_layers": 32,
        "num_key_value_heads": 4,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
            "rope_type": "default",
        },
        "vocab_size": 248320,
    },
    "tie_word_embeddings": False,
    "vision_config": {"depth": 27, "model_type": "qwen3_5"},
}
QWEN3_NEXT: dict[str, Any] = {
    **SHARED,
    "architectures": ["Qwen3NextForCausalLM"],
    "decoder_sparse_step": 1,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "linear_num_value_heads": 32,
    "mlp_only_layers": [],
    "model_type": "qwen3_next",
    "moe_intermediate_size": 512,
    "norm_topk_prob": True,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.25,
    "rope_scaling": None,
    "rope_theta": 10000000,
    "shared_expert_intermediate_size": 512,
    "tie_word_embeddings": False,
    "vocab_size": 151936,
}


def test_qwen3_5_beside_what_sees_images() -> None:
    config = parse_config(QWEN3_5)
    assert (config.vocab_size, config.hidden_size, config.context_length) == (248320, 4096, 262144)
    delta, full = config.layers[0].mixer, config.layers[3].mixer
    assert delta == DeltaConfig(num_k_heads=16, num_v_heads=32, k_dim=128, v_dim=128, conv_width=4)
    assert isinstance(full, AttentionConfig)
    assert full.rope == Rope(theta=1e7, width=64)
    assert full.output_gate
    assert full.qk_norm
    assert [layer.mixer for layer in config.layers] == [delta, delta, delta, full] * 8


def test_qwen3_next_may_be_dense() -> None:
    dense = parse_config({**QWEN3_NEXT, "num_experts": 0})
    assert dense == parse_config({**QWEN3_NEXT, "mlp_only_layers": list(range(48))})
    assert dense == parse_config({**QWEN3_NEXT, "decoder_sparse_step": 49})
    assert {layer.mlp for layer in dense.layers} == {MlpConfig(width=5120)}
    assert [layer.mixer.kind for layer in dense.layers] == ["delta", "delta", "delta", "attention"] * 12


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attn_output_gate", False),
        ("hidden_act", "gelu"),
        ("layer_types", ["full_attention"]),
        ("layer_types", ["sliding_attention"] * 48),
        ("linear_conv_kernel_dim", 1),
        ("linear_num_value_heads", 24),
        ("n_routed_experts", 8),
        ("partial_rotary_factor", 1.5),
        ("rope_scaling", {"rope_type": "longrope"}),
        ("sliding_window", 4096),
        ("text_config", [1]),
    ],
)
def test_what_is_not_served_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        parse_config({**QWEN3_NEXT, "num_experts": 0, field: value})


@pytest.mark.parametrize("tied", [True, False])
def test_files_with_images_and_drafts_give_the_same_logits(tmp_path: Path, tied: bool) -> None:
    text = save(make_reference("qwen3_5", tie_word_embeddings=tied), tmp_path / "text")
    expected = PagedExecution(*load(text)).sequence(TOKENS, [100], SHUFFLED_BLOCKS)
    tensors = {
        name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in load_file(text / "model.safetensors").items()
    }
    tensors |= {"mtp.fc.weight": torch.ones(2, 2), "model.visual.blocks.0.norm1.weight": torch.ones(2)}
    both = tmp_path / "both"
    both.mkdir()
    save_file(tensors, both / "model.safetensors")
    config = {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "text_config": json.loads((text / "config.json").read_text()),
        "tie_word_embeddings": True,  # the files have the last word
    }
    (both / "config.json").write_text(json.dumps(config))
    model_config = read_model_config(both, [both / "model.safetensors"])
    assert model_config.tie_word_embeddings == tied
    if not tied:
        (both / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    assert torch.equal(PagedExecution(*load(both)).sequence(TOKENS, [100], SHUFFLED_BLOCKS), expected)


def test_memory_is_planned_from_the_config_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_5))
    result = CliRunner().invoke(main, ["plan", str(tmp_path), "--gpu-memory", "80GiB", "--json"])
    dispatch.configure(dispatch.Mode.AUTO, threads=1)
    assert result.exit_code == 0, result.stderr
    row = json.loads(result.stdout)
    pages = 8 * 2 * 4 * 256 * 2  # bytes a token of keys and values in bf16
    assert row["kv_cache"] > row["kv_cache_tokens"] * pages, "states take some"
    assert row["kv_cache_tokens"] * pages > 0.4 * row["kv_cache"]
    assert row["max_model_len"] == 262144
