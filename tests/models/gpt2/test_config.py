"""A GPT-2's config, of today and of old."""

from __future__ import annotations

from typing import Any

import pytest

from app.models.architectures import parse_config
from app.models.config import AttentionConfig, ConfigError, MlpConfig
from tests.models.test_config import GPT2, attention_of, mlp_of


def test_the_published_config() -> None:
    config = parse_config(GPT2)
    attention = AttentionConfig(
        num_heads=12, num_kv_heads=12, head_dim=64, scale=0.125, rope=None, qkv_bias=True, o_bias=True
    )
    assert config.attentions == (attention,) * 12
    assert mlp_of(config) == MlpConfig(width=3072, activation="gelu_tanh", gated=False, bias=True)
    assert (config.norm_eps, config.vocab_size, config.tie_word_embeddings) == (1e-5, 50257, True)
    assert config.context_length == config.positions == 1024


def test_defaults_are_transformers() -> None:
    sizes = ("architectures", "vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    assert parse_config({name: GPT2[name] for name in sizes}) == parse_config(GPT2)


def test_an_inner_width_of_its_own() -> None:
    assert mlp_of(parse_config({**GPT2, "n_inner": None})).width == 3072
    assert mlp_of(parse_config({**GPT2, "n_inner": 100})).width == 100


def test_scales_of_scores() -> None:
    assert attention_of(parse_config({**GPT2, "scale_attn_weights": False})).scale == 1
    by_layer = parse_config({**GPT2, "scale_attn_by_inverse_layer_idx": True})
    assert [attention.scale for attention in by_layer.attentions] == [0.125 / (i + 1) for i in range(12)]


def test_the_names_that_other_models_have_are_read_as_well() -> None:
    names = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }
    others = {other: GPT2[name] for other, name in names.items()}
    assert parse_config({**GPT2, **others}) == parse_config(GPT2)
    own = {name: value for name, value in GPT2.items() if name not in names.values()}
    assert parse_config({**own, **others}) == parse_config(GPT2)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"n_head": 7}, ["n_head = 7", "n_embd = 768"]),
        ({"n_embd": "wide"}, ["n_embd", "int"]),
        ({"n_positions": 0}, ["n_positions"]),
        ({"n_layer": 10**9}, ["n_layer"]),
        ({"hidden_size": 1024}, ["hidden_size = 1024", "n_embd = 768"]),
        ({"activation_function": "tanh"}, ["activation_function", "tanh", "gelu_new"]),
        ({"add_cross_attention": True}, ["add_cross_attention"]),
        ({"pruned_heads": {"0": [1]}}, ["pruned_heads"]),
        ({"model_type": "gpt_neo"}, ["model_type", "gpt_neo"]),
        ({"num_experts": 8}, ["num_experts"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantization_config", "gptq"]),
    ],
)
def test_what_is_not_supported_is_named(changes: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config({**GPT2, **changes})
    message = str(error.value)
    assert "\n" not in message
    for name in names:
        assert name in message


@pytest.mark.parametrize("field", ["vocab_size", "n_embd", "n_layer", "n_head", "n_positions"])
def test_a_missing_size_is_named(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        parse_config({name: value for name, value in GPT2.items() if name != field})
