"""A Gemma 2's ``config.json`` (torch-free)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from app.models.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig
from app.models.config_fields import refuse_number_changing
from app.models.config_rope import read_rope
from app.models.reading import (
    BESIDE_FIELDS,
    GELU,
    ROPE_FIELDS,
    Epsilon,
    NumLayers,
    Positive,
    activation_of,
    check_heads,
    context_of,
    every_other_window,
    read_fields,
)

_Cap = Annotated[float, msgspec.Meta(gt=0)] | None


class _Fields(msgspec.Struct, kw_only=True):
    """With transformers' defaults; published configs leave some out, and older ones the caps."""

    vocab_size: Positive = 256_000
    hidden_size: Positive = 2304
    intermediate_size: Positive = 9216
    num_hidden_layers: NumLayers = 26
    num_attention_heads: Positive = 8
    num_key_value_heads: Positive = 4
    head_dim: Positive = 256
    max_position_embeddings: Positive = 8192
    rms_norm_eps: Epsilon = 1e-6
    hidden_activation: Any = "gelu_pytorch_tanh"
    tie_word_embeddings: bool | None = True
    attention_bias: bool | None = False
    query_pre_attn_scalar: Annotated[float, msgspec.Meta(gt=0)] = 256
    sliding_window: Positive | None = 4096
    layer_types: list[str] | None = None
    attn_logit_softcapping: _Cap = 50.0
    final_logit_softcapping: _Cap = 30.0


FIELDS_READ: Final = frozenset(_Fields.__struct_fields__) | BESIDE_FIELDS | ROPE_FIELDS


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    fields = read_fields(config, _Fields, model_types=("gemma2",))
    refuse_number_changing(config, FIELDS_READ, fields.head_dim)
    check_heads(fields.num_attention_heads, fields.num_key_value_heads, fields.head_dim)
    rope = read_rope(config, fields.max_position_embeddings, fields.head_dim)
    bias = bool(fields.attention_bias)
    mlp = MlpConfig(
        width=fields.intermediate_size, activation=activation_of(fields.hidden_activation, "hidden_activation", GELU)
    )

    def layer(window: int | None) -> LayerConfig:
        attention = AttentionConfig(
            num_heads=fields.num_attention_heads,
            num_kv_heads=fields.num_key_value_heads,
            head_dim=fields.head_dim,
            scale=fields.query_pre_attn_scalar**-0.5,
            rope=rope,
            window=window,
            softcap=fields.attn_logit_softcapping,
            qkv_bias=bias,
            o_bias=bias,
        )
        return LayerConfig(attention, mlp)

    windows = every_other_window(fields.layer_types, fields.sliding_window, fields.num_hidden_layers)
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.vocab_size,
        hidden_size=fields.hidden_size,
        norm_eps=fields.rms_norm_eps,
        layers=tuple(map(layer, windows)),
        context_length=context_of(fields.max_position_embeddings, rope),
        tie_word_embeddings=fields.tie_word_embeddings is not False,
        embedding_scale=math.sqrt(fields.hidden_size),
        logit_softcap=fields.final_logit_softcapping,
    )
