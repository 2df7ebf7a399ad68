"""A Qwen3-Next's or Qwen3.5's ``config.json``, dense or with experts (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec

from app.layers.config import FeedForwardConfig, MixerConfig
from app.models import reading
from app.models.config import AttentionConfig, DeltaConfig, ExpertsConfig, LayerConfig, MlpConfig, ModelConfig
from app.models.config_fields import ConfigError, refuse_number_changing, shown
from app.models.config_rope import read_rope
from app.models.reading import (
    QK_NORM_FIELDS,
    SILU,
    Positive,
    activation_of,
    context_of,
    head_dim_of,
    kv_heads_of,
    no_windows,
    read_fields,
    text_part,
)
from app.models.reading_experts import SparseFields, check_experts, expert_count

INTERLEAVED: Final = "Qwen3NextForCausalLM"
"""The architecture whose checkpoints keep a delta layer's projections key head by key head; its layers may be dense."""
WITH_EXPERTS: Final = ("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration")
"""Those all of whose layers have experts."""


class QwenFields(SparseFields, kw_only=True):
    """Config fields of the whole family, with transformers' defaults."""

    linear_num_key_heads: Positive = 16
    linear_num_value_heads: Positive = 32
    linear_key_head_dim: Positive = 128
    linear_value_head_dim: Positive = 128
    linear_conv_kernel_dim: Annotated[int, msgspec.Meta(ge=2, le=64)] = 4
    full_attention_interval: Positive | None = 4
    attn_output_gate: bool | None = True
    moe_intermediate_size: Positive = 512
    shared_expert_intermediate_size: Positive = 512
    norm_topk_prob: bool = True


FIELDS_READ: Final = reading.FIELDS_READ | frozenset(QwenFields.__struct_fields__)
_IMAGES: Final = frozenset({"mrope_section", "mrope_interleaved"})
"""Rotary fields that say which of an image's coordinates rotates which element; a text token's are all equal."""


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    next_, sparse = architecture == INTERLEAVED, architecture in WITH_EXPERTS
    silent = {"intermediate_size": 5632 if next_ else 12288, "num_experts_per_tok": 8 if sparse else 10}
    config = {**silent, **text_part(config)}
    name = "qwen3_next" if next_ else "qwen3_5_moe" if sparse else "qwen3_5"
    fields = read_fields(config, QwenFields, model_types=(name, f"{name}_text"), experts=next_ or sparse)
    if fields.attn_output_gate is False:
        raise ConfigError("attn_output_gate = False is not supported")
    no_windows(msgspec.structs.replace(fields, layer_types=None), architecture)
    activation = activation_of(fields.hidden_act, "hidden_act", SILU)
    head_dim = head_dim_of(fields, silent=None if "head_dim" in config else 256)
    refuse_number_changing(config, FIELDS_READ | QK_NORM_FIELDS, head_dim)
    rope = read_rope(config, fields.max_position_embeddings, head_dim, partial=0.25, implied=_IMAGES)
    bias = bool(fields.attention_bias)
    attention = AttentionConfig(
        num_heads=fields.num_attention_heads,
        num_kv_heads=kv_heads_of(fields, silent=2 if next_ or sparse else 4),
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=rope,
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=True,
        output_gate=True,
    )
    delta = _delta(fields)
    dense = MlpConfig(width=fields.intermediate_size, activation=activation)
    experts = _experts(fields, all_layers=sparse) if next_ or sparse else None

    def mlp_of(layer: int) -> FeedForwardConfig:
        return experts if experts is not None and (sparse or fields.is_sparse(layer)) else dense

    mixers: dict[str, MixerConfig] = {"full_attention": attention, "linear_attention": delta}
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.vocab_size,
        hidden_size=fields.hidden_size,
        norm_eps=fields.rms_norm_eps,
        layers=tuple(LayerConfig(mixers[kind], mlp_of(i)) for i, kind in enumerate(_layer_types(fields))),
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


def _experts(fields: QwenFields, *, all_layers: bool) -> ExpertsConfig | None:
    """None: all layers are dense."""
    said = {"num_experts": fields.num_experts, "num_local_experts": fields.num_local_experts}
    count = expert_count(said, silent=256 if all_layers else 512)
    if count == 0 and not all_layers:
        return None
    experts = ExpertsConfig(
        count=count,
        chosen=fields.num_experts_per_tok,
        width=fields.moe_intermediate_size,
        normalise=all_layers or fields.norm_topk_prob,
        shared_width=fields.shared_expert_intermediate_size,
        shared_gate=True,
    )
    check_experts(experts)
    return experts
