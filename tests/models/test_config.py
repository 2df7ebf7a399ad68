"""ModelConfig reads the config.json of published checkpoints, old and new spelling, and names what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from app.layers.rope_scaling import LinearScaling, Llama3Scaling, YarnScaling
from app.models.architectures import find, parse_config
from app.models.config import AttentionConfig, ConfigError, MlpConfig, ModelConfig, Rope

SMOLLM2: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 1,
    "hidden_act": "silu",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 49152,
}
LLAMA_3_1: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}
MISTRAL_7B: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
QWEN2_5: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "layer_types": ["full_attention"] * 28,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3_MOE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
"""Of Qwen3-30B-A3B."""
GPT2: dict[str, Any] = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}


def attention_of(config: ModelConfig) -> AttentionConfig:
    """Of the first layer."""
    return config.attentions[0]


def rope_of(config: ModelConfig) -> Rope:
    rope = attention_of(config).rope
    assert rope is not None
    return rope


def mlp_of(config: ModelConfig) -> MlpConfig:
    mlp = config.layers[0].mlp
    assert isinstance(mlp, MlpConfig)
    return mlp


def windows_of(config: ModelConfig) -> tuple[int | None, ...]:
    return tuple(attention.window for attention in config.attentions)


def test_smollm2() -> None:
    config = parse_config(SMOLLM2)
    rope = Rope(theta=100000.0, width=64)
    attention = AttentionConfig(num_heads=9, num_kv_heads=3, head_dim=64, scale=0.125, rope=rope)
    assert config.attentions == (attention,) * 30
    assert [layer.mlp for layer in config.layers] == [MlpConfig(width=1536)] * 30
    assert config.tie_word_embeddings
    assert config.context_length == 8192


def test_llama_3_1_rope_scaling_in_both_spellings() -> None:
    expected = Llama3Scaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    old = parse_config(LLAMA_3_1)
    assert rope_of(old) == Rope(theta=500000.0, width=128, scaling=expected)
    new_dict = {k: v for k, v in LLAMA_3_1.items() if k not in ("rope_scaling", "rope_theta")}
    new_dict["rope_parameters"] = {**LLAMA_3_1["rope_scaling"], "rope_theta": 500000.0}
    assert parse_config(new_dict) == old


def test_llama_biases_follow_the_config() -> None:
    config = parse_config({**SMOLLM2, "attention_bias": True, "mlp_bias": True})
    assert attention_of(config).qkv_bias
    assert attention_of(config).o_bias
    assert mlp_of(config).bias


def test_mistral_slides_in_every_layer() -> None:
    assert windows_of(parse_config(MISTRAL_7B)) == (4096,) * 32
    assert windows_of(parse_config({**MISTRAL_7B, "sliding_window": None})) == (None,) * 32
    silent = {k: v for k, v in MISTRAL_7B.items() if k != "sliding_window"}
    assert windows_of(parse_config(silent)) == (4096,) * 32


def test_qwen2_has_qkv_bias_alone_and_slides_only_when_told() -> None:
    config = parse_config(QWEN2_5)
    assert attention_of(config).qkv_bias
    assert not attention_of(config).o_bias
    assert not mlp_of(config).bias
    assert windows_of(config) == (None,) * 24
    sliding = parse_config({**QWEN2_5, "use_sliding_window": True, "sliding_window": 1024})
    assert windows_of(sliding) == (None,) * 21 + (1024,) * 3


def test_layer_types_say_which_layers_slide() -> None:
    types = ["sliding_attention", "full_attention"] * 14
    config = parse_config({**QWEN3, "layer_types": types, "use_sliding_window": True, "sliding_window": 64})
    assert windows_of(config) == (64, None) * 14


def test_qwen3_has_qk_norm_and_its_own_head_dim() -> None:
    config = parse_config(QWEN3)
    attention = attention_of(config)
    assert attention.qk_norm
    assert attention.head_dim == 128
    assert rope_of(config).theta == 1000000.0
    assert not attention.qkv_bias
    assert attention_of(parse_config({k: v for k, v in QWEN3.items() if k != "head_dim"})).head_dim == 128


def test_yarn_lengthens_the_context() -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    config = parse_config({**QWEN2_5, "rope_scaling": scaling})
    assert rope_of(config).scaling == YarnScaling(factor=4.0, original_max_position_embeddings=32768)
    assert config.context_length == 131072


def test_yarn_factor_may_be_implied_by_the_two_contexts() -> None:
    scaling = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 8192, "truncate": False}
    config = parse_config({**QWEN2_5, "rope_scaling": scaling})
    expected = YarnScaling(factor=4.0, original_max_position_embeddings=8192, truncate=False)
    assert rope_of(config).scaling == expected


def test_linear_and_dynamic_scaling() -> None:
    linear = {**SMOLLM2, "rope_scaling": {"type": "linear", "factor": 2}}
    assert rope_of(parse_config(linear)).scaling == LinearScaling(factor=2.0)
    dynamic = {**SMOLLM2, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    assert rope_of(parse_config(dynamic)).scaling is None


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (
            {"architectures": ["JambaForCausalLM"]},
            ["JambaForCausalLM", "LlamaForCausalLM", "tuili models"],
        ),
        ({"architectures": []}, ["architectures", "[]"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
        ({"num_local_experts": 8}, ["num_local_experts", "8", "mixture"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantization_config", "gptq"]),
        ({"hidden_size": "big"}, ["hidden_size", "int"]),
        ({"architectures": [["LlamaForCausalLM"]]}, ["architectures", "names no model class"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers"]),
        ({"num_hidden_layers": 10**12}, ["num_hidden_layers", "4096"]),
        ({"vocab_size": 2**40}, ["vocab_size"]),
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps"]),
        ({"rms_norm_eps": -1.0}, ["rms_norm_eps"]),
        ({"num_key_value_heads": 4}, ["num_key_value_heads = 4", "num_attention_heads = 9"]),
        ({"hidden_size": 577}, ["num_attention_heads = 9", "hidden_size = 577"]),
        ({"head_dim": 63}, ["head_dim = 63"]),
        ({"rope_scaling": {"rope_type": "su"}}, ["rope_scaling.rope_type", "su", "longrope", "yarn"]),
        ({"rope_scaling": {"rope_type": "longrope"}}, ["rope_scaling", "short_factor"]),
        ({"rope_scaling": {"rope_type": "linear"}}, ["rope_scaling", "factor"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": -1.0}}, ["rope_scaling", "factor"]),
        ({"rope_scaling": "linear"}, ["rope_scaling", "'linear'"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 1e308}}, ["rope_scaling", "factor"]),
        ({"rope_theta": "x"}, ["rope_theta", "'x'"]),
        ({"rope_theta": True}, ["rope_theta", "True"]),
        ({"rope_theta": float("nan")}, ["rope_theta", "nan"]),
        ({"rope_theta": float("inf")}, ["rope_theta", "inf"]),
        ({"rope_theta": 10**400}, ["rope_theta"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, ["rope_parameters", "layer type"]),
    ],
)
def test_what_is_not_supported_is_named(changes: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config({**SMOLLM2, **changes})
    message = str(error.value)
    assert "\n" not in message
    for name in names:
        assert name in message


@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "max_position_embeddings", "architectures"])
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        parse_config({k: v for k, v in SMOLLM2.items() if k != field})


@pytest.mark.parametrize(
    ("types", "match"),
    [
        (["full_attention"] * 3, "3 entries"),
        (["chunked_attention"] * 28, "chunked_attention"),
        (["sliding_attention"] * 28, "sliding_window"),
    ],
)
def test_bad_layer_types(types: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        parse_config({**QWEN3, "layer_types": types})


def test_an_architecture_nobody_serves_is_an_error_that_says_where_those_served_are_listed() -> None:
    with pytest.raises(ConfigError, match=r"XForCausalLM.*tuili models"):
        find("XForCausalLM")
