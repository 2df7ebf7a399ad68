"""A GPT-NeoX's config, with the rotary settings' own names and with transformers' of today."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GPTNeoXConfig

from app.models.architectures import parse_config
from app.models.config import AttentionConfig, ConfigError, MlpConfig, Rope
from tests.models.test_config import attention_of, mlp_of, rope_of

PYTHIA_70M: dict[str, Any] = {
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 512,
    "initializer_range": 0.02,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}


def test_the_published_config() -> None:
    config = parse_config(PYTHIA_70M)
    rope = Rope(theta=10_000.0, width=16)
    attention = AttentionConfig(
        num_heads=8, num_kv_heads=8, head_dim=64, scale=0.125, rope=rope, qkv_bias=True, o_bias=True
    )
    assert config.attentions == (attention,) * 6
    assert mlp_of(config) == MlpConfig(width=2048, activation="gelu", gated=False, bias=True)
    assert all(layer.parallel for layer in config.layers)
    assert (config.norm_eps, config.context_length, config.tie_word_embeddings) == (1e-5, 2048, False)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rotary_pct": 1.0, "rotary_emb_base": 500},
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0, "partial_rotary_factor": 0.5}},
        {"use_parallel_residual": False, "attention_bias": False},
    ],
)
def test_what_transformers_makes_of_it_says_the_same(changes: dict[str, Any]) -> None:
    given = PYTHIA_70M | changes
    written = GPTNeoXConfig(**given).to_dict()
    assert "rotary_pct" not in written
    assert parse_config(written | {"architectures": given["architectures"]}) == parse_config(given)


def test_layers_in_turn_and_no_biases() -> None:
    config = parse_config({**PYTHIA_70M, "use_parallel_residual": False, "attention_bias": False})
    assert not any(layer.parallel for layer in config.layers)
    assert not attention_of(config).qkv_bias
    assert not attention_of(config).o_bias
    assert mlp_of(config).bias


def test_silence_rotates_a_quarter() -> None:
    silent = {name: value for name, value in PYTHIA_70M.items() if not name.startswith("rotary")}
    assert rope_of(parse_config(silent)) == Rope(theta=10_000.0, width=16)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_attention_heads", 7),
        ("num_attention_heads", 512),
        ("head_dim", 32),
        ("hidden_act", "silu"),
        ("rotary_pct", 0.0),
        ("rotary_pct", "all"),
        ("rotary_emb_base", -1),
        ("num_experts", 8),
        ("model_type", "gpt_neox_japanese"),
        ("clip_qkv", 8.0),
    ],
)
def test_what_is_not_supported_is_named(field: str, value: Any) -> None:
    names = {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}
    with pytest.raises(ConfigError, match=names.get(field, field)):
        parse_config({**PYTHIA_70M, field: value})
