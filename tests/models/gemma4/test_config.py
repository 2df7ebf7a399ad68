"""Configs of Gemma 4, as published and as transformers writes them; what changes numbers is refused."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import Gemma4Config, Gemma4TextConfig

from app.layers.rope_scaling import LinearScaling
from app.models.architectures import parse_config
from app.models.config import AttentionConfig, ConfigError, ExpertsConfig, LayerInputsConfig, MlpConfig, Rope

E2B: dict[str, Any] = {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "model_type": "gemma4",
    "image_token_id": 258880,
    "tie_word_embeddings": True,
    "text_config": {
        "attention_k_eq_v": False,
        "enable_moe_block": False,
        "final_logit_softcapping": 30.0,
        "global_head_dim": 512,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1536,
        "hidden_size_per_layer_input": 256,
        "intermediate_size": 6144,
        "layer_types": [*["sliding_attention"] * 4, "full_attention"] * 7,
        "max_position_embeddings": 131072,
        "model_type": "gemma4_text",
        "num_attention_heads": 8,
        "num_hidden_layers": 35,
        "num_key_value_heads": 1,
        "num_kv_shared_layers": 20,
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "sliding_window": 512,
        "use_bidirectional_attention": None,
        "use_double_wide_mlp": True,
        "vocab_size": 262144,
        "vocab_size_per_layer_input": 262144,
    },
    "vision_config": {"hidden_size": 768, "model_type": "gemma4_vision"},
}
DENSE_31B: dict[str, Any] = {
    "architectures": ["Gemma4ForCausalLM"],
    "attention_k_eq_v": True,
    "hidden_size": 5376,
    "hidden_size_per_layer_input": 0,
    "intermediate_size": 21504,
    "model_type": "gemma4_text",
    "num_attention_heads": 32,
    "num_global_key_value_heads": 4,
    "num_hidden_layers": 60,
    "num_key_value_heads": 16,
    "sliding_window": 1024,
    "use_bidirectional_attention": "vision",
}
EXPERTS: dict[str, Any] = {
    **DENSE_31B,
    "enable_moe_block": True,
    "moe_intermediate_size": 704,
    "num_experts": 128,
    "top_k_experts": 8,
}
SMALL: dict[str, Any] = {"architectures": ["Gemma4ForCausalLM"], "num_hidden_layers": 6}
PROPORTIONAL = {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 7.0}


def test_the_text_part_of_e2b() -> None:
    config = parse_config(E2B)
    assert (config.num_layers, config.context_length, config.logit_softcap) == (35, 131_072, 30.0)
    assert config.embedding_scale == 1536**0.5
    assert config.layer_inputs == LayerInputsConfig(vocab_size=262_144, width=256)
    assert config.layers[0].mixer == AttentionConfig(
        num_heads=8,
        num_kv_heads=1,
        head_dim=256,
        scale=1.0,
        rope=Rope(theta=1e4, width=256),
        window=512,
        qk_norm=True,
        value_norm=True,
    )
    full = config.attentions[4]
    assert (full.head_dim, full.window, full.rope) == (512, None, Rope(theta=1e6, width=128, spread=512))
    # The last twenty attend over pages of the fourteenth and the fifteenth layer.
    assert config.keepers == (*range(15), *([13] * 4 + [14]) * 4)
    assert [layer.mlp for layer in config.layers] == [
        MlpConfig(width=6144 if index < 15 else 12288, activation="gelu_tanh") for index in range(35)
    ]
    assert all(layer.factor for layer in config.layers)


def test_keys_of_full_attention_are_values_in_31b() -> None:
    config = parse_config(DENSE_31B)
    assert config.layer_inputs is None
    heads = {(a.window, a.num_kv_heads, a.head_dim, a.key_is_value) for a in config.attentions}
    assert heads == {(1024, 16, 256, False), (None, 4, 512, True)}
    assert [index for index, a in enumerate(config.attentions) if a.window is None] == list(range(5, 60, 6))
    assert config.keepers == tuple(range(60))


def test_experts_stand_beside_the_mlp() -> None:
    assert parse_config(EXPERTS).layers[0].mlp == ExpertsConfig(
        count=128, chosen=8, width=704, activation="gelu_tanh", shared_width=21504, apart=True
    )


@pytest.mark.parametrize(
    "given", [E2B["text_config"], DENSE_31B, EXPERTS, {}, {"layer_types": ["sliding_attention"] * 30}]
)
def test_what_transformers_makes_of_them_says_the_same(given: dict[str, Any]) -> None:
    architectures = {"architectures": ["Gemma4ForCausalLM"]}
    written = Gemma4TextConfig(**given).to_dict() | architectures
    assert "per_layer_config" in written
    assert parse_config(written) == parse_config(given | architectures)
    both = Gemma4Config(text_config=given).to_dict() | {"architectures": E2B["architectures"]}
    assert parse_config(both).layers == parse_config(written).layers


@pytest.mark.parametrize("config", [{}, {"num_kv_shared_layers": 0}, {"global_head_dim": 64, "attention_k_eq_v": True}])
def test_absent_fields_are_what_transformers_takes_them_for(config: dict[str, Any]) -> None:
    ours, theirs = parse_config(SMALL | config), Gemma4TextConfig(**SMALL | config)
    assert (ours.vocab_size, ours.hidden_size, ours.norm_eps) == (262_144, theirs.hidden_size, theirs.rms_norm_eps)
    assert ours.context_length == theirs.max_position_embeddings
    for index, (attention, kind) in enumerate(zip(ours.attentions, theirs.layer_types, strict=True)):
        layer = theirs.per_layer_config[index]
        assert (attention.num_kv_heads, attention.head_dim) == (layer.num_key_value_heads, layer.head_dim)
        assert attention.window == (theirs.sliding_window if kind == "sliding_attention" else None)
        assert attention.rope is not None
        assert attention.rope.theta == theirs.rope_parameters[kind]["rope_theta"]


def test_proportional_rotations() -> None:
    def rope(**changes: Any) -> Rope | None:
        parameters = {"full_attention": PROPORTIONAL | changes, "sliding_attention": {"rope_type": "default"}}
        return parse_config(SMALL | {"rope_parameters": parameters}).attentions[-1].rope

    assert rope() == Rope(theta=7.0, width=256, spread=512)
    assert rope(partial_rotary_factor=1.0) == Rope(theta=7.0, width=512)
    assert rope(factor=8.0) == Rope(theta=7.0, width=256, spread=512, scaling=LinearScaling(factor=8.0))
    assert rope(partial_rotary_factor=0.1) == Rope(theta=7.0, width=50, spread=512)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_bidirectional_attention", "all"),
        ("hidden_activation", "silu"),
        ("hidden_activation", "gelu"),
        ("num_key_value_heads", 3),
        ("head_dim", 15),
        ("sliding_window", None),
        ("layer_types", ["full_attention"]),
        ("layer_types", ["chunked_attention"] * 6),
        ("model_type", "gemma3_text"),
        ("num_kv_shared_layers", 6),
        ("num_kv_shared_layers", 7),
        ("num_kv_shared_layers", 1),  # the first five slide: nobody's keys are there for the last
        ("per_layer_config", {"full": {"head_dim": 512}}),
        ("per_layer_config", {"5": {"head_dim": 512, "sliding_window": 3}}),
        ("vocab_size_per_layer_input", 1000),
        ("final_logit_softcapping", 0.0),
        ("attn_logit_softcapping", 50.0),
        ("rope_parameters", {"rope_type": "linear", "factor": 8.0}),
        ("rope_parameters", {"full_attention": PROPORTIONAL, "chunked_attention": None}),
        ("rope_parameters", {"full_attention": {**PROPORTIONAL, "partial_rotary_factor": 0}}),
        ("rope_parameters", {"full_attention": {**PROPORTIONAL, "partial_rotary_factor": 1.5}}),
        ("rope_parameters", {"full_attention": {**PROPORTIONAL, "factor": "8"}}),
        ("rope_parameters", {"full_attention": {"rope_type": "longrope"}}),
        ("enable_moe_block", True),
    ],
)
def test_what_would_change_numbers_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config({**SMALL, field: value})
    assert (field if field != "enable_moe_block" else "num_experts is missing") in str(error.value)
    assert "\n" not in str(error.value)


def test_layers_that_share_pages_have_their_heads() -> None:
    types = ["sliding_attention", "full_attention"] * 3
    heads = {str(index): {"head_dim": 512 if index < 5 else 256} for index in (1, 3, 5)}
    with pytest.raises(ConfigError, match="per_layer_config: layer 5 has other heads than 3"):
        parse_config({**SMALL, "layer_types": types, "num_kv_shared_layers": 2, "per_layer_config": heads})
    with pytest.raises(ConfigError, match="top_k_experts = 9 is more than num_experts = 8"):
        parse_config({**EXPERTS, "num_experts": 8, "top_k_experts": 9})
