"""A Cohere's and a Cohere 2's config."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import Cohere2Config, CohereConfig

from app.models.architectures import parse_config
from app.models.config import AttentionConfig, ConfigError, MlpConfig, Rope
from tests.models.test_config import mlp_of, rope_of, windows_of

COMMAND_R7B: dict[str, Any] = {
    "architectures": ["Cohere2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 5,
    "cache_implementation": "hybrid",
    "eos_token_id": 255001,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "layer_norm_eps": 1e-05,
    "layer_switch": 4,
    "logit_scale": 0.25,
    "max_position_embeddings": 8192,
    "model_type": "cohere2",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "order_of_interleaved_layers": "local_attn_first",
    "pad_token_id": 0,
    "position_embedding_type": "rope_gptj",
    "rope_scaling": None,
    "rope_theta": 50000,
    "rotary_pct": 1.0,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
    "use_embedding_sharing": True,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "vocab_size": 256000,
}
COMMAND_R: dict[str, Any] = {
    "architectures": ["CohereForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 8192,
    "intermediate_size": 24576,
    "layer_norm_eps": 1e-05,
    "logit_scale": 0.0625,
    "max_position_embeddings": 131072,
    "model_max_length": 131072,
    "model_type": "cohere",
    "num_attention_heads": 64,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "rope_theta": 4000000.0,
    "use_qk_norm": False,
    "vocab_size": 256000,
}


def test_layers_that_slide_rotate_and_others_do_not() -> None:
    config = parse_config(COMMAND_R7B)
    rope = Rope(theta=50_000.0, width=128, interleaved=True)
    sliding = AttentionConfig(num_heads=32, num_kv_heads=8, head_dim=128, scale=128**-0.5, rope=rope, window=4096)
    full = AttentionConfig(num_heads=32, num_kv_heads=8, head_dim=128, scale=128**-0.5, rope=None)
    assert config.attentions == (sliding, sliding, sliding, full) * 8
    assert all(layer.parallel for layer in config.layers)
    assert mlp_of(config) == MlpConfig(width=14336)
    assert (config.logit_scale, config.tie_word_embeddings, config.context_length) == (0.25, True, 8192)


def test_every_layer_of_the_first_generation_sees_all_and_rotates() -> None:
    config = parse_config(COMMAND_R)
    assert set(windows_of(config)) == {None}
    assert {attention.rope for attention in config.attentions} == {Rope(theta=4_000_000.0, width=128, interleaved=True)}
    assert config.logit_scale == 0.0625


def test_what_transformers_makes_of_them_says_the_same() -> None:
    for kind, given in ((Cohere2Config, COMMAND_R7B), (CohereConfig, COMMAND_R)):
        written = kind(**given).to_dict()
        assert "rope_theta" not in written
        assert parse_config(written | {"architectures": given["architectures"]}) == parse_config(given)


def test_bases_where_the_config_is_silent() -> None:
    for given, theta in ((COMMAND_R7B, 10_000.0), (COMMAND_R, 500_000.0)):
        silent = {name: value for name, value in given.items() if name != "rope_theta"}
        assert rope_of(parse_config(silent)).theta == theta


def test_layer_types_go_before_the_pattern() -> None:
    types = ["full_attention", *["sliding_attention"] * 31]
    assert windows_of(parse_config({**COMMAND_R7B, "layer_types": types})) == (None, *[4096] * 31)
    assert windows_of(parse_config({**COMMAND_R7B, "sliding_window_pattern": 2}))[:4] == (4096, None) * 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_qk_norm", True),
        ("head_dim", 64),
        ("num_attention_heads", 33),
        ("num_key_value_heads", 5),
        ("position_embedding_type", "alibi"),
        ("sliding_window", None),
        ("sliding_window_pattern", 0),
        ("layer_types", ["full_attention"]),
        ("logit_scale", "a quarter"),
        ("final_logit_softcapping", 30.0),
        ("partial_rotary_factor", 0.5),
        ("hidden_act", "gelu"),
        ("num_experts", 8),
        ("model_type", "cohere"),
    ],
)
def test_what_is_not_supported_is_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        parse_config({**COMMAND_R7B, field: value})
