"""Configs of gpt-oss: the published shape, transformers' defaults, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GptOssConfig

from app.kernels.route import MAX_EXPERTS as MAX_CHOSEN_AMONG
from app.layers.config import ClampedSwiglu
from app.layers.rope_scaling import YarnScaling
from app.models.architectures import parse_config
from app.models.config import AttentionConfig, ConfigError, ExpertsConfig, Rope
from app.models.reading_experts import MAX_EXPERTS
from tests.models.test_config import windows_of

GPT_OSS_20B: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "quantization_config": {
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
        "quant_method": "mxfp4",
    },
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}


def test_the_20b_of_the_hub() -> None:
    config = parse_config(GPT_OSS_20B)
    assert (config.vocab_size, config.context_length, config.num_layers) == (201_088, 131_072, 24)
    assert not config.tie_word_embeddings
    assert windows_of(config) == (128, None) * 12
    scaling = YarnScaling(factor=32.0, original_max_position_embeddings=4096, truncate=False)
    assert config.attentions[0] == AttentionConfig(
        num_heads=64,
        num_kv_heads=8,
        head_dim=64,
        scale=1 / 8,
        rope=Rope(theta=150_000.0, width=64, scaling=scaling),
        window=128,
        sinks=True,
        qkv_bias=True,
        o_bias=True,
    )
    assert {layer.mlp for layer in config.layers} == {
        ExpertsConfig(
            count=32,
            chosen=4,
            width=2880,
            activation=ClampedSwiglu(alpha=1.702, limit=7.0),
            bias=True,
            router_bias=True,
        )
    }


def test_what_a_config_leaves_out_is_transformers_default() -> None:
    theirs = {**GptOssConfig().to_dict(), "architectures": ["GptOssForCausalLM"]}
    assert parse_config({"architectures": ["GptOssForCausalLM"]}) == parse_config(theirs)
    rope = {"rope_type": "default"}
    config = parse_config({"architectures": ["GptOssForCausalLM"], "rope_parameters": rope})
    assert config.attentions[0].rope == Rope(
        theta=GptOssConfig(rope_parameters=rope).rope_parameters["rope_theta"], width=64
    )


def test_the_bound_is_that_of_the_kernels() -> None:
    assert MAX_EXPERTS == MAX_CHOSEN_AMONG


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"swiglu_limit": 0}, "swiglu_limit"),
        ({"swiglu_alpha": -1.0}, "swiglu_alpha"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"head_dim": 15}, "head_dim"),
        ({"num_local_experts": 0}, "num_local_experts"),
        ({"num_local_experts": 1025}, "num_local_experts = 1025"),
        ({"num_experts": 16}, "num_experts = 16 differ"),
        ({"num_experts_per_tok": 33}, "num_experts_per_tok = 33"),
        ({"sliding_window": None}, "sliding_window"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"rope_scaling": {"rope_type": "ntk"}}, "ntk"),
        ({"model_type": "mixtral"}, "mixtral"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        parse_config({**GPT_OSS_20B, **fields})
    assert "\n" not in str(error.value)
