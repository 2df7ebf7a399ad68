"""A Granite 4's ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec

from app.layers.config import FeedForwardConfig, MixerConfig
from app.models import reading
from app.models.config import AttentionConfig, ConfigError, ExpertsConfig, LayerConfig, MlpConfig, ModelConfig
from app.models.config_fields import refuse_number_changing, shown
from app.models.config_rope import read_rope
from app.models.mamba_reading import MambaFields, read_mamba
from app.models.reading import (
    SILU,
    Count,
    Positive,
    activation_of,
    context_of,
    head_dim_of,
    kv_heads_of,
    no_windows,
    read_fields,
)
from app.models.reading_experts import check_experts, expert_count

_Factor = Annotated[float, msgspec.Meta(gt=0, lt=1e6)]
_KINDS: Final = {
    **dict.fromkeys(("mamba", "linear_attention"), "mamba"),
    **dict.fromkeys(("attention", "full_attention"), "attention"),
}
"""What layer_types may say -> the kind of mixer; the first are those of published files."""


class _Fields(MambaFields, kw_only=True):
    """Fields of a decoder, its mixers and its experts, with transformers' defaults."""

    embedding_multiplier: _Factor = 1.0
    attention_multiplier: _Factor = 1.0
    """Factor on scores, in place of the root of a head's width."""
    residual_multiplier: _Factor = 1.0
    logits_scaling: _Factor = 1.0
    """Divisor of the logits."""
    num_local_experts: Count | None = None
    num_experts_per_tok: Count = 2
    shared_intermediate_size: Positive = 1024
    position_embedding_type: Literal["rope", "nope"] | None = None
    layers_block_type: list[str] | None = None
    """Another name of layer_types."""


FIELDS_READ: Final = reading.FIELDS_READ | frozenset(_Fields.__struct_fields__)


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    fields = read_fields(config, _Fields, model_types=("granitemoehybrid",), experts=True)
    no_windows(msgspec.structs.replace(fields, layer_types=None), architecture)
    activation, head_dim = activation_of(fields.hidden_act, "hidden_act", SILU), head_dim_of(fields)
    refuse_number_changing(config, FIELDS_READ, head_dim)
    context, rope = fields.max_position_embeddings, None
    if fields.position_embedding_type == "rope":
        rope = read_rope(config, context, head_dim)
        context = context_of(context, rope)
    bias, scale = bool(fields.attention_bias), fields.residual_multiplier
    mixers: dict[str, MixerConfig] = {
        "attention": AttentionConfig(
            num_heads=fields.num_attention_heads,
            num_kv_heads=kv_heads_of(fields),
            head_dim=head_dim,
            scale=fields.attention_multiplier,
            rope=rope,
            qkv_bias=bias,
            o_bias=bias,
            output_scale=scale,
        ),
    }
    kinds = _kinds(fields)
    if "mamba" in kinds:
        mixers["mamba"] = read_mamba(fields, fields.mamba_expand * fields.hidden_size, output_scale=scale)
    mlp: FeedForwardConfig = MlpConfig(width=fields.shared_intermediate_size, activation=activation, output_scale=scale)
    if count := expert_count({"num_local_experts": fields.num_local_experts}, silent=8):
        mlp = ExpertsConfig(
            count=count,
            chosen=fields.num_experts_per_tok,
            width=fields.intermediate_size,
            scoring="softmax chosen",
            normalise=False,
            shared_width=fields.shared_intermediate_size,
            output_scale=scale,
        )
        if mlp.chosen == 0:
            raise ConfigError(f"num_experts_per_tok = 0 of num_local_experts = {count} is not supported")
        check_experts(mlp, count="num_local_experts")
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.vocab_size,
        hidden_size=fields.hidden_size,
        norm_eps=fields.rms_norm_eps,
        layers=tuple(LayerConfig(mixers[kind], mlp) for kind in kinds),
        context_length=context,
        tie_word_embeddings=bool(fields.tie_word_embeddings),
        embedding_scale=fields.embedding_multiplier,
        logit_scale=1 / fields.logits_scaling,
    )


def _kinds(fields: _Fields) -> Sequence[str]:
    types = fields.layer_types if fields.layer_types is not None else fields.layers_block_type
    if types is None:
        return ["mamba"] * fields.num_hidden_layers
    if len(types) != fields.num_hidden_layers:
        raise ConfigError(f"layer_types has {len(types)} entries, num_hidden_layers = {fields.num_hidden_layers}")
    for kind in types:
        if kind not in _KINDS:
            raise ConfigError(f"layer_types = {shown(kind)} is not supported")
    return [_KINDS[kind] for kind in types]
