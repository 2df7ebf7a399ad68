"""A gpt-oss' ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from app.layers.config import ClampedSwiglu
from app.models.config import AttentionConfig, ExpertsConfig, LayerConfig, ModelConfig
from app.models.config_fields import refuse_number_changing
from app.models.config_rope import read_rope
from app.models.reading import (
    BESIDE_FIELDS,
    ROPE_FIELDS,
    SILU,
    Epsilon,
    NumLayers,
    Positive,
    activation_of,
    check_heads,
    context_of,
    every_other_window,
    read_fields,
)
from app.models.reading_experts import check_experts, expert_count

DEFAULT_THETA: Final = 150_000.0
_YARN: Final = {
    "rope_type": "yarn",
    "rope_theta": DEFAULT_THETA,
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""Where a config has no rotary settings."""
_Factor = Annotated[float, msgspec.Meta(gt=0, lt=1e9)]


class _Fields(msgspec.Struct, kw_only=True):
    """With transformers' defaults."""

    vocab_size: Positive = 201_088
    hidden_size: Positive = 2880
    intermediate_size: Positive = 2880
    """Width of each expert."""
    num_hidden_layers: NumLayers = 36
    num_attention_heads: Positive = 64
    num_key_value_heads: Positive = 8
    head_dim: Positive = 64
    max_position_embeddings: Positive = 131_072
    rms_norm_eps: Epsilon = 1e-5
    hidden_act: Any = "silu"
    tie_word_embeddings: bool | None = False
    attention_bias: bool | None = True
    sliding_window: Positive | None = 128
    layer_types: list[str] | None = None
    num_local_experts: Positive | None = None
    num_experts: Positive | None = None
    """The same, as transformers 5 calls it too."""
    num_experts_per_tok: Positive = 4
    swiglu_alpha: _Factor = 1.702
    swiglu_limit: _Factor = 7.0


FIELDS_READ: Final = frozenset(_Fields.__struct_fields__) | BESIDE_FIELDS | ROPE_FIELDS


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    fields = read_fields(_widened(config), _Fields, model_types=("gpt_oss",), experts=True)
    refuse_number_changing(config, FIELDS_READ, fields.head_dim)
    check_heads(fields.num_attention_heads, fields.num_key_value_heads, fields.head_dim)
    silent = not (config.get("rope_scaling") or config.get("rope_parameters"))
    positions = {**config, "rope_parameters": {**_YARN, "rope_theta": config.get("rope_theta") or DEFAULT_THETA}}
    positions = positions if silent else {"rope_theta": DEFAULT_THETA, **config}
    rope = read_rope(positions, fields.max_position_embeddings, fields.head_dim)
    activation_of(fields.hidden_act, "hidden_act", SILU)  # of the clamped gate
    bias = bool(fields.attention_bias)
    experts = _experts(fields)

    def layer(window: int | None) -> LayerConfig:
        attention = AttentionConfig(
            num_heads=fields.num_attention_heads,
            num_kv_heads=fields.num_key_value_heads,
            head_dim=fields.head_dim,
            scale=fields.head_dim**-0.5,
            rope=rope,
            window=window,
            sinks=True,
            qkv_bias=bias,
            o_bias=bias,
        )
        return LayerConfig(attention, experts)

    windows = every_other_window(fields.layer_types, fields.sliding_window, fields.num_hidden_layers)
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.vocab_size,
        hidden_size=fields.hidden_size,
        norm_eps=fields.rms_norm_eps,
        layers=tuple(map(layer, windows)),
        context_length=context_of(fields.max_position_embeddings, rope),
        tie_word_embeddings=bool(fields.tie_word_embeddings),
    )


def _widened(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config without what it says of experts in MXFP4, which are widened as they are loaded."""
    quantization = config.get("quantization_config")
    if isinstance(quantization, dict) and quantization.get("quant_method") == "mxfp4":
        return {**config, "quantization_config": None}
    return config


def _experts(fields: _Fields) -> ExpertsConfig:
    said = {"num_local_experts": fields.num_local_experts, "num_experts": fields.num_experts}
    experts = ExpertsConfig(
        count=expert_count(said, silent=128, dense=False),
        chosen=fields.num_experts_per_tok,
        width=fields.intermediate_size,
        activation=ClampedSwiglu(alpha=fields.swiglu_alpha, limit=fields.swiglu_limit),
        bias=True,
        router_bias=True,
        # A softmax over the chosen is one over all whose chosen sum to one.
        normalise=True,
    )
    check_experts(experts, count="num_local_experts")
    return experts
