"""Configs of Gemma 2, with what published ones leave out; what changes numbers is refused."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import Gemma2Config

from app.models.architectures import parse_config
from app.models.config import AttentionConfig, ConfigError, MlpConfig, Rope
from tests.models.test_config import windows_of

GEMMA2_27B: dict[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"],
    "attention_bias": False,
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "head_dim": 128,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 4608,
    "intermediate_size": 36864,
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "num_attention_heads": 32,
    "num_hidden_layers": 46,
    "num_key_value_heads": 16,
    "query_pre_attn_scalar": 144,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "sliding_window_size": 4096,
    "vocab_size": 256000,
}


def test_the_27b_of_the_hub() -> None:
    config = parse_config(GEMMA2_27B)
    assert (config.vocab_size, config.context_length, config.num_layers) == (256_000, 8192, 46)
    assert config.tie_word_embeddings
    assert config.embedding_scale == 4608**0.5
    assert config.logit_softcap == 30.0
    assert windows_of(config) == (4096, None) * 23
    assert config.attentions[0] == AttentionConfig(
        num_heads=32,
        num_kv_heads=16,
        head_dim=128,
        scale=1 / 12,
        rope=Rope(theta=10_000.0, width=128),
        window=4096,
        softcap=50.0,
    )
    assert config.layers[0].mlp == MlpConfig(width=36864, activation="gelu_tanh")


def test_what_a_config_leaves_out_is_transformers_default() -> None:
    theirs = Gemma2Config()
    assert parse_config({"architectures": ["Gemma2ForCausalLM"]}) == parse_config(
        {**theirs.to_dict(), "architectures": ["Gemma2ForCausalLM"]}
    )


def test_caps_may_be_left_out() -> None:
    config = parse_config({**GEMMA2_27B, "attn_logit_softcapping": None, "final_logit_softcapping": None})
    assert {attention.softcap for attention in config.attentions} == {None}
    assert config.logit_softcap is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attn_logit_softcapping", 0.0),
        ("final_logit_softcapping", -30.0),
        ("hidden_activation", "silu"),
        ("num_key_value_heads", 5),
        ("head_dim", 15),
        ("query_pre_attn_scalar", 0),
        ("sliding_window", None),
        ("layer_types", ["full_attention"]),
        ("model_type", "gemma3_text"),
        ("rope_scaling", {"rope_type": "ntk"}),
        ("use_bidirectional_attention", True),
        ("num_experts", 8),
    ],
)
def test_what_would_change_numbers_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config({**GEMMA2_27B, field: value})
    assert field in str(error.value)
    assert "\n" not in str(error.value)
