"""Configs of Gemma 3, in both spellings and with what published ones leave out; what changes numbers is refused."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import Gemma3Config, Gemma3TextConfig

from app.layers.rope_scaling import LinearScaling
from app.models.architectures import parse_config
from app.models.config import AttentionConfig, ConfigError, MlpConfig, ModelConfig, Rope
from tests.models.test_config import windows_of

GEMMA3_1B: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "cache_implementation": "hybrid",
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
GEMMA3_27B: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "boi_token_index": 255999,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "text_config": {
        "head_dim": 128,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "model_type": "gemma3_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "query_pre_attn_scalar": 168,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}
SMALL: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "num_hidden_layers": 7,
    "hidden_size": 64,
    "num_attention_heads": 4,
}
PER_TYPE = {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"}}


def full_layers(config: ModelConfig) -> list[int]:
    return [i for i, window in enumerate(windows_of(config)) if window is None]


def test_the_1b_of_the_hub() -> None:
    config = parse_config(GEMMA3_1B)
    assert config.context_length == 32768
    assert config.tie_word_embeddings
    assert config.embedding_scale == 1152**0.5
    assert full_layers(config) == [5, 11, 17, 23]
    assert config.layers[0].mixer == AttentionConfig(
        num_heads=4,
        num_kv_heads=1,
        head_dim=256,
        scale=1 / 16,
        rope=Rope(theta=10_000.0, width=256),
        window=512,
        qk_norm=True,
    )
    full = config.attentions[5]
    assert (full.window, full.rope) == (None, Rope(theta=1_000_000.0, width=256))
    assert config.layers[0].mlp == MlpConfig(width=6912, activation="gelu_tanh")


def test_the_text_part_of_the_27b_of_the_hub() -> None:
    config = parse_config(GEMMA3_27B)
    assert (config.vocab_size, config.context_length, config.num_layers) == (262_208, 131_072, 62)
    assert full_layers(config) == list(range(5, 62, 6))
    sliding, full = config.attentions[0], config.attentions[5]
    assert sliding.scale == pytest.approx(168**-0.5)
    assert sliding.rope == Rope(theta=10_000.0, width=128)
    assert full.rope == Rope(theta=1_000_000.0, width=128, scaling=LinearScaling(factor=8.0))


def test_what_transformers_makes_of_them_says_the_same() -> None:
    written = Gemma3TextConfig(**GEMMA3_1B).to_dict()
    assert "rope_theta" not in written
    assert parse_config(written) == parse_config(GEMMA3_1B)
    both = Gemma3Config(text_config=GEMMA3_27B["text_config"]).to_dict()
    assert parse_config({**both, "architectures": GEMMA3_27B["architectures"]}) == parse_config(GEMMA3_27B)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"rope_theta": 5e5, "rope_local_base_freq": 1234.0},
        {"rope_parameters": PER_TYPE, "rope_theta": 5e5},
        {"rope_parameters": {**PER_TYPE, "sliding_attention": {"rope_type": "default", "rope_theta": 7.0}}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"sliding_window_pattern": 2},
        {"sliding_window_pattern": 1, "sliding_window": None},
        {"layer_types": ["full_attention", *["sliding_attention"] * 6], "sliding_window_pattern": 2},
    ],
)
def test_absent_fields_are_what_transformers_takes_them_for(config: dict[str, Any]) -> None:
    given = SMALL | config
    ours, theirs = parse_config(given), Gemma3TextConfig(**given)
    assert (ours.vocab_size, ours.norm_eps) == (theirs.vocab_size, theirs.rms_norm_eps)
    assert ours.context_length == theirs.max_position_embeddings
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    for attention, kind in zip(ours.attentions, theirs.layer_types, strict=True):
        assert (attention.num_kv_heads, attention.head_dim) == (theirs.num_key_value_heads, theirs.head_dim)
        assert attention.window == (theirs.sliding_window if kind == "sliding_attention" else None)
        rope = theirs.rope_parameters[kind]
        assert attention.rope is not None
        assert attention.rope.theta == rope["rope_theta"]
        assert (attention.rope.scaling is None) == (rope["rope_type"] == "default")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("use_bidirectional_attention", True),
        ("hidden_activation", "silu"),
        ("num_key_value_heads", 3),
        ("head_dim", 15),
        ("query_pre_attn_scalar", 0),
        ("sliding_window", None),
        ("sliding_window_pattern", 0),
        ("layer_types", ["full_attention"]),
        ("layer_types", ["chunked_attention"] * 7),
        ("model_type", "gemma2"),
        ("rope_parameters", {"rope_type": "linear", "factor": 8.0}),
        ("rope_parameters", {**PER_TYPE, "full_attention": {"rope_type": "longrope"}}),
        ("rope_scaling", {"full_attention": {"rope_type": "linear", "factor": 8.0}}),
        ("rope_scaling", [8.0]),
        ("num_experts", 8),
    ],
)
def test_what_would_change_numbers_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config({**SMALL, field: value})
    assert field in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", [None, [], "text"])
def test_a_text_part_that_is_none(part: Any) -> None:
    with pytest.raises(ConfigError, match="text_config"):
        parse_config({**GEMMA3_27B, "text_config": part})
