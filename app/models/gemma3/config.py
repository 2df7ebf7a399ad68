"""A Gemma 3's ``config.json``, or the text part of one that sees images too (torch-free)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from app.models.config import AttentionConfig, ConfigError, LayerConfig, MlpConfig, ModelConfig, Rope
from app.models.config_fields import refuse_number_changing, shown
from app.models.config_rope import rope_of
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
    read_fields,
    text_part,
    windows_of_types,
)

_FULL, _SLIDING = "full_attention", "sliding_attention"
_THETAS: Final = {_FULL: ("rope_theta", 1e6), _SLIDING: ("rope_local_base_freq", 1e4)}
"""Type of layers -> the older field of their rotary base, and the base where no field has it."""


class _Fields(msgspec.Struct, kw_only=True):
    """Published configs leave out much of what transformers has a default for."""

    vocab_size: Positive = 262_208
    hidden_size: Positive = 2304
    intermediate_size: Positive = 9216
    num_hidden_layers: NumLayers = 26
    num_attention_heads: Positive = 8
    num_key_value_heads: Positive = 4
    head_dim: Positive = 256
    max_position_embeddings: Positive = 131_072
    rms_norm_eps: Epsilon = 1e-6
    hidden_activation: Any = "gelu_pytorch_tanh"
    tie_word_embeddings: bool | None = True
    attention_bias: bool | None = False
    query_pre_attn_scalar: Annotated[float, msgspec.Meta(gt=0)] = 256
    sliding_window: Positive | None = 4096
    layer_types: list[str] | None = None
    sliding_window_pattern: Positive | None = 6


FIELDS_READ: Final = (
    frozenset(_Fields.__struct_fields__) | BESIDE_FIELDS | ROPE_FIELDS | {"rope_local_base_freq", "text_config"}
)


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    text = text_part(config)
    fields = read_fields(text, _Fields, model_types=("gemma3_text",))
    refuse_number_changing(text, FIELDS_READ, fields.head_dim)
    check_heads(fields.num_attention_heads, fields.num_key_value_heads, fields.head_dim)
    ropes = {kind: _rope(text, kind, fields) for kind in _THETAS}
    windows = windows_of_types(_layer_types(fields), fields.sliding_window, fields.num_hidden_layers)
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
            rope=ropes[_FULL if window is None else _SLIDING],
            window=window,
            qkv_bias=bias,
            o_bias=bias,
            qk_norm=True,
        )
        return LayerConfig(attention, mlp)

    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.vocab_size,
        hidden_size=fields.hidden_size,
        norm_eps=fields.rms_norm_eps,
        layers=tuple(map(layer, windows)),
        context_length=context_of(fields.max_position_embeddings, ropes[_FULL]),
        tie_word_embeddings=fields.tie_word_embeddings is not False,
        embedding_scale=math.sqrt(fields.hidden_size),
    )


def _layer_types(fields: _Fields) -> list[str]:
    """Every ``sliding_window_pattern``-th layer sees all positions, unless ``layer_types`` says otherwise."""
    if fields.layer_types is not None:
        return fields.layer_types
    period = fields.sliding_window_pattern or 6
    return [_SLIDING if (i + 1) % period else _FULL for i in range(fields.num_hidden_layers)]


def _rope(config: Mapping[str, Any], kind: str, fields: _Fields) -> Rope:
    """Rotary settings of one type of layers; ``rope_scaling`` is for those that see all positions."""
    by_type = config.get("rope_parameters") or {}
    if not isinstance(by_type, dict) or not by_type.keys() <= _THETAS.keys():
        raise ConfigError(f"rope_parameters = {shown(by_type)} are not {' and '.join(map(repr, _THETAS))}")
    older = config.get("rope_scaling") or {}
    for field, value in (("rope_scaling", older), (f"rope_parameters.{kind}", by_type.get(kind) or {})):
        if not isinstance(value, dict) or any(isinstance(inner, dict) for inner in value.values()):
            raise ConfigError(f"{field} = {shown(value)} is not an object of rotary settings")
    rope = dict(by_type.get(kind) or {})
    if kind == _FULL:
        rope |= older
    field, silent = _THETAS[kind]
    beside = {**config, "rope_theta": config.get(field) or silent}
    return rope_of(rope, f"rope_parameters.{kind}", beside, fields.max_position_embeddings, fields.head_dim)
