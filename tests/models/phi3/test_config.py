"""A Phi-3's config, of every generation."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from transformers import Phi3Config

from app.layers.rope_scaling import LongRopeScaling
from app.models.architectures import parse_config
from app.models.config import AttentionConfig, ConfigError, MlpConfig, Rope
from tests.models.test_config import attention_of, mlp_of, rope_of, windows_of

PHI_3_MINI_4K: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": 32000,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "model_type": "phi3",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 32000,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 2047,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 32064,
}
PHI_4_MINI: dict[str, Any] = {
    **PHI_3_MINI_4K,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "partial_rotary_factor": 0.75,
    "rope_scaling": {
        "long_factor": [1.0 + i for i in range(48)],
        "short_factor": [1.0] * 48,
        "type": "longrope",
    },
    "sliding_window": 262144,
    "tie_word_embeddings": True,
    "vocab_size": 200064,
}


def test_the_published_config() -> None:
    config = parse_config(PHI_3_MINI_4K)
    attention = AttentionConfig(
        num_heads=32,
        num_kv_heads=32,
        head_dim=96,
        scale=96**-0.5,
        rope=Rope(theta=10_000.0, width=96),
        window=2047,
    )
    assert config.attentions == (attention,) * 32
    assert mlp_of(config) == MlpConfig(width=8192)
    assert (config.norm_eps, config.context_length, config.tie_word_embeddings) == (1e-5, 4096, False)


def test_long_rope_turns_a_part_of_each_head() -> None:
    config = parse_config(PHI_4_MINI)
    assert rope_of(config) == Rope(
        theta=10_000.0,
        width=96,
        scaling=LongRopeScaling(
            short_factor=(1.0,) * 48,
            long_factor=tuple(1.0 + i for i in range(48)),
            original_max_position_embeddings=4096,
            factor=32.0,
        ),
    )
    assert attention_of(config).head_dim == 128
    assert set(windows_of(config)) == {262144}
    assert (config.context_length, config.tie_word_embeddings) == (131072, True)


@pytest.mark.parametrize("config", [PHI_3_MINI_4K, PHI_4_MINI])
def test_what_transformers_makes_of_it_says_the_same(config: dict[str, Any]) -> None:
    written = Phi3Config(**deepcopy(config)).to_dict()
    assert "rope_scaling" not in written
    assert parse_config(written | {"architectures": config["architectures"]}) == parse_config(config)


@pytest.mark.parametrize("kind", ["su", "yarn"])
def test_older_names_of_long_rope(kind: str) -> None:
    older = {**PHI_4_MINI["rope_scaling"], "type": kind}
    assert parse_config({**PHI_4_MINI, "rope_scaling": older}) == parse_config(PHI_4_MINI)


def test_a_factor_of_its_own() -> None:
    rope = {**PHI_4_MINI["rope_scaling"], "factor": 8.0, "attention_factor": 1.5}
    scaling = rope_of(parse_config({**PHI_4_MINI, "rope_scaling": rope})).scaling
    assert isinstance(scaling, LongRopeScaling)
    assert (scaling.factor, scaling.attention_factor) == (8.0, 1.5)


def test_the_original_context_where_the_config_is_silent() -> None:
    silent = {name: value for name, value in PHI_4_MINI.items() if name != "original_max_position_embeddings"}
    assert parse_config(silent) == parse_config(PHI_4_MINI)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"rope_scaling": {**PHI_4_MINI["rope_scaling"], "long_factor": [1.0] * 47}}, ["long_factor has 47", "48"]),
        ({"rope_scaling": {**PHI_4_MINI["rope_scaling"], "short_factor": [0.0] * 48}}, ["short_factor"]),
        ({"rope_scaling": {**PHI_4_MINI["rope_scaling"], "long_factor": None}}, ["long_factor"]),
        ({"rope_scaling": {**PHI_4_MINI["rope_scaling"], "long_mscale": 1.2}}, ["long_mscale"]),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["rope_scaling.rope_type", "linear", "longrope"]),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ["rope_scaling.rope_type", "dynamic"]),
        ({"rope_scaling": [1.0]}, ["rope_scaling"]),
        ({"original_max_position_embeddings": 1}, ["original_max_position_embeddings"]),
        ({"partial_rotary_factor": 1.5}, ["partial_rotary_factor"]),
        ({"num_key_value_heads": 5}, ["num_key_value_heads"]),
        ({"hidden_act": "gelu"}, ["hidden_act"]),
        ({"num_local_experts": 16}, ["num_local_experts"]),
        ({"model_type": "phimoe"}, ["model_type"]),
    ],
)
def test_what_is_not_supported_is_named(changes: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config({**PHI_4_MINI, **changes})
    for name in names:
        assert name in str(error.value)
    assert "\n" not in str(error.value)
