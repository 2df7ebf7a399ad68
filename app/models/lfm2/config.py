"""An LFM2's ``config.json``, dense or with experts, or of the text part of one that sees images (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec.structs import replace

from app.layers.config import MixerConfig
from app.models import reading
from app.models.config import ConfigError, ExpertsConfig, LayerConfig, ModelConfig, ShortConvConfig
from app.models.config_fields import shown
from app.models.config_rope import read_rope
from app.models.reading import (
    Count,
    DecoderFields,
    Epsilon,
    Positive,
    gated_decoder,
    head_dim_of,
    kv_heads_of,
    no_windows,
    read_fields,
    text_part,
)
from app.models.reading_experts import check_experts, expert_count, with_experts

WITH_EXPERTS: Final = "Lfm2MoeForCausalLM"
WITH_IMAGES: Final = "Lfm2VlForConditionalGeneration"
"""The architecture whose text part is one of the others."""
_WITH_EXPERTS_TYPE: Final = "lfm2_moe"
_SUM_OFFSET: Final = 1e-6
"""What transformers adds to the sum of a token's weights."""


class _Fields(DecoderFields, kw_only=True):
    """Those of a decoder, its convolutions and its experts, with transformers' defaults."""

    norm_eps: Epsilon = 1e-5
    conv_bias: bool = False
    conv_L_cache: Annotated[int, msgspec.Meta(ge=2, le=64)] = 3  # noqa: N815
    full_attn_idxs: list[int] | None = None
    """Layers that attend, of a config without ``layer_types``; None for all."""
    block_ff_dim: Positive | None = None
    """``intermediate_size`` under its other name, which wins."""
    block_auto_adjust_ff_dim: bool = True
    block_ffn_dim_multiplier: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = 1.0
    block_multiple_of: Positive = 256
    tie_word_embeddings: bool | None = True
    tie_embedding: bool | None = None
    """The same under its other name, which wins."""
    num_dense_layers: Count = 2
    num_experts: Count | None = None
    num_local_experts: Count | None = None
    """The same under its other name."""
    num_experts_per_tok: Positive = 4
    moe_intermediate_size: Positive = 1792
    use_expert_bias: bool = True
    norm_topk_prob: bool = True
    routed_scaling_factor: Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)] = 1.0


FIELDS_READ: Final = reading.FIELDS_READ | frozenset(_Fields.__struct_fields__)


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    text = {**text_part(config), "tie_embedding": config.get("tie_embedding")}
    sparse = architecture == WITH_EXPERTS
    if architecture == WITH_IMAGES:
        sparse = text.get("model_type") == _WITH_EXPERTS_TYPE
    if not sparse and text.get("block_ff_dim") is not None:
        text["intermediate_size"] = text["block_ff_dim"]
    fields = read_fields(text, _Fields, model_types=(_WITH_EXPERTS_TYPE if sparse else "lfm2",), experts=sparse)
    tied = fields.tie_word_embeddings if fields.tie_embedding is None else fields.tie_embedding
    head_dim = head_dim_of(fields)
    model = gated_decoder(
        architecture,
        text,
        replace(
            fields,
            intermediate_size=fields.intermediate_size if sparse else _width(fields),
            rms_norm_eps=fields.norm_eps,
            tie_word_embeddings=tied is not False,
        ),
        windows=no_windows(replace(fields, layer_types=None), architecture),
        head_dim=head_dim,
        num_kv_heads=kv_heads_of(fields, silent=8),
        qk_norm=True,
        reads=FIELDS_READ,
        rope=read_rope(text, fields.max_position_embeddings, head_dim, silent_theta=1e6),
    )
    model = _with_convolutions(model, fields)
    return with_experts(model, _experts(fields), lambda layer: layer >= fields.num_dense_layers) if sparse else model


def _width(fields: _Fields) -> int:
    """Width of a dense layer's MLP."""
    width, multiple = fields.intermediate_size, fields.block_multiple_of
    if not fields.block_auto_adjust_ff_dim:
        return width
    width = int(2 * width / 3)
    if fields.block_ffn_dim_multiplier is not None:
        width = -(-int(fields.block_ffn_dim_multiplier * width) // multiple) * multiple
    if not 0 < width < 1 << 31:
        raise ConfigError(f"block_ffn_dim_multiplier = {fields.block_ffn_dim_multiplier} makes an MLP {width} wide")
    return width


def _with_convolutions(model: ModelConfig, fields: _Fields) -> ModelConfig:
    conv = ShortConvConfig(channels=model.hidden_size, conv_width=fields.conv_L_cache, bias=fields.conv_bias)

    def mixer(kind: str, attention: MixerConfig) -> MixerConfig:
        return attention if kind == "full_attention" else conv

    layers = zip(_layer_types(fields), model.layers, strict=True)
    return replace(model, layers=tuple(LayerConfig(mixer(kind, layer.mixer), layer.mlp) for kind, layer in layers))


def _layer_types(fields: _Fields) -> Sequence[str]:
    count = fields.num_hidden_layers
    if fields.layer_types is None:
        attending = range(count) if fields.full_attn_idxs is None else fields.full_attn_idxs
        return ["full_attention" if i in attending else "conv" for i in range(count)]
    if len(fields.layer_types) != count:
        raise ConfigError(f"layer_types has {len(fields.layer_types)} entries, num_hidden_layers = {count}")
    for kind in fields.layer_types:
        if kind not in ("full_attention", "conv"):
            raise ConfigError(f"layer_types = {shown(kind)} is not supported")
    return fields.layer_types


def _experts(fields: _Fields) -> ExpertsConfig:
    said = {"num_experts": fields.num_experts, "num_local_experts": fields.num_local_experts}
    experts = ExpertsConfig(
        count=expert_count(said, silent=32, dense=False),
        chosen=fields.num_experts_per_tok,
        width=fields.moe_intermediate_size,
        scoring="sigmoid",
        normalise=fields.norm_topk_prob,
        sum_offset=_SUM_OFFSET if fields.norm_topk_prob else 0.0,
        scale=fields.routed_scaling_factor,
        correction=fields.use_expert_bias,
    )
    check_experts(experts)
    return experts
