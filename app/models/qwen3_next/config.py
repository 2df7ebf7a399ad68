"""A Qwen3-Next's or Qwen3.5's ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec

from app.layers.config import MixerConfig
from app.models.config import AttentionConfig, DeltaConfig, LayerConfig, MlpConfig, ModelConfig
from app.models.config_fields import ConfigError, refuse_number_changing, shown
from app.models.config_rope import read_rope
from app.models.reading import (
    FIELDS_READ,
    SILU,
    DecoderFields,
    Positive,
    activation_of,
    context_of,
    head_dim_of,
    kv_heads_of,
    no_windows,
    read_fields,
    text_part,
)

INTERLEAVED: Final = "Qwen3NextForCausalLM"
"""The architecture whose checkpoints keep a delta layer's projections key head by key head."""


class QwenFields(DecoderFields, kw_only=True):
    """Of both; experts are Qwen3-Next's alone."""

    linear_num_key_heads: Positive = 16
    linear_num_value_heads: Positive = 32
    linear_key_head_dim: Positive = 128
    linear_value_head_dim: Positive = 128
    linear_conv_kernel_dim: Annotated[int, msgspec.Meta(ge=2, le=64)] = 4
    full_attention_interval: Positive | None = 4
    attn_output_gate: bool | None = True
    num_experts: Annotated[int, msgspec.Meta(ge=0)] | msgspec.UnsetType | None = msgspec.UNSET
    decoder_sparse_step: Positive = 1
    mlp_only_layers: list[int] | None = None


FIELDS: Final = FIELDS_READ | frozenset(QwenFields.__struct_fields__)
_IMPLIED: Final = frozenset({"use_qk_norm", "qk_layernorm"})
_IMAGES: Final = frozenset({"mrope_section", "mrope_interleaved"})
"""Which of an image's coordinates rotates what: those of text are equal."""


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architectures.ReadConfig`."""
    next_ = architecture == INTERLEAVED
    config = text_part(config)
    types = ("qwen3_next",) if next_ else ("qwen3_5", "qwen3_5_text")
    fields = read_fields(config, QwenFields, model_types=types, experts=next_)
    if next_:
        _refuse_experts(fields)
    if fields.attn_output_gate is False:
        raise ConfigError("attn_output_gate = False is not supported")
    no_windows(msgspec.structs.replace(fields, layer_types=None), architecture)
    activation = activation_of(fields.hidden_act, "hidden_act", SILU)
    head_dim = head_dim_of(fields, silent=None if "head_dim" in config else 256)
    refuse_number_changing(config, FIELDS | _IMPLIED, head_dim)
    rope = read_rope(config, fields.max_position_embeddings, head_dim, partial=0.25, implied=_IMAGES)
    bias = bool(fields.attention_bias)
    attention = AttentionConfig(
        num_heads=fields.num_attention_heads,
        num_kv_heads=kv_heads_of(fields, silent=2 if next_ else 4),
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=rope,
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=True,
        output_gate=True,
    )
    delta, mlp = _delta(fields), MlpConfig(width=fields.intermediate_size, activation=activation)
    mixers: dict[str, MixerConfig] = {"full_attention": attention, "linear_attention": delta}
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.vocab_size,
        hidden_size=fields.hidden_size,
        norm_eps=fields.rms_norm_eps,
        layers=tuple(LayerConfig(mixers[kind], mlp) for kind in _layer_types(fields)),
        context_length=context_of(fields.max_position_embeddings, rope),
        tie_word_embeddings=bool(fields.tie_word_embeddings),
    )


def _delta(fields: QwenFields) -> DeltaConfig:
    keys, values = fields.linear_num_key_heads, fields.linear_num_value_heads
    if values % keys:
        raise ConfigError(f"linear_num_key_heads = {keys} does not divide linear_num_value_heads = {values}")
    return DeltaConfig(
        num_k_heads=keys,
        num_v_heads=values,
        k_dim=fields.linear_key_head_dim,
        v_dim=fields.linear_value_head_dim,
        conv_width=fields.linear_conv_kernel_dim,
    )


def _layer_types(fields: QwenFields) -> Sequence[str]:
    count = fields.num_hidden_layers
    if fields.layer_types is None:
        interval = fields.full_attention_interval or 4
        return ["linear_attention" if (i + 1) % interval else "full_attention" for i in range(count)]
    if len(fields.layer_types) != count:
        raise ConfigError(f"layer_types has {len(fields.layer_types)} entries, num_hidden_layers = {count}")
    for kind in fields.layer_types:
        if kind not in ("full_attention", "linear_attention"):
            raise ConfigError(f"layer_types = {shown(kind)} is not supported")
    return fields.layer_types


def _refuse_experts(fields: QwenFields) -> None:
    count = 512 if fields.num_experts is msgspec.UNSET else fields.num_experts
    dense, step = fields.mlp_only_layers or (), fields.decoder_sparse_step
    if count and any(i not in dense and (i + 1) % step == 0 for i in range(fields.num_hidden_layers)):
        raise ConfigError(f"num_experts = {count}: mixture-of-experts models of this family are not supported")
