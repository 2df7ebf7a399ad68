"""A StarCoder2's config."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import Starcoder2Config

from app.models.architectures import parse_config
from app.models.config import AttentionConfig, ConfigError, MlpConfig, Rope
from tests.models.test_config import attention_of, mlp_of, windows_of

STARCODER2_3B: dict[str, Any] = {
    "architectures": ["Starcoder2ForCausalLM"],
    "attention_dropout": 0.1,
    "bos_token_id": 0,
    "embedding_dropout": 0.1,
    "eos_token_id": 0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 3072,
    "initializer_range": 0.018042,
    "intermediate_size": 12288,
    "max_position_embeddings": 16384,
    "mlp_type": "default",
    "model_type": "starcoder2",
    "norm_epsilon": 1e-05,
    "norm_type": "layer_norm",
    "num_attention_heads": 24,
    "num_hidden_layers": 30,
    "num_key_value_heads": 2,
    "residual_dropout": 0.1,
    "rope_theta": 999999.4420358813,
    "sliding_window": 4096,
    "use_bias": True,
    "use_cache": True,
    "vocab_size": 49152,
}


def test_the_published_config() -> None:
    config = parse_config(STARCODER2_3B)
    attention = AttentionConfig(
        num_heads=24,
        num_kv_heads=2,
        head_dim=128,
        scale=128**-0.5,
        rope=Rope(theta=999999.4420358813, width=128),
        window=4096,
        qkv_bias=True,
        o_bias=True,
    )
    assert config.attentions == (attention,) * 30
    assert mlp_of(config) == MlpConfig(width=12288, activation="gelu_tanh", gated=False, bias=True)
    assert (config.norm_eps, config.context_length, config.tie_word_embeddings) == (1e-5, 16384, True)


def test_what_transformers_makes_of_it_says_the_same() -> None:
    assert parse_config(Starcoder2Config(**STARCODER2_3B).to_dict()) == parse_config(STARCODER2_3B)


def test_no_biases_and_no_window() -> None:
    config = parse_config({**STARCODER2_3B, "use_bias": False, "sliding_window": None})
    assert set(windows_of(config)) == {None}
    assert not any((attention_of(config).qkv_bias, attention_of(config).o_bias, mlp_of(config).bias))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_key_value_heads", 5),
        ("hidden_act", "silu"),
        ("sliding_window", 0),
        ("norm_epsilon", 2),
        ("partial_rotary_factor", 0.5),
        ("num_experts", 8),
        ("model_type", "gpt_bigcode"),
    ],
)
def test_what_is_not_supported_is_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        parse_config({**STARCODER2_3B, field: value})
