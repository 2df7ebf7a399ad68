"""An ERNIE 4.5 MoE's ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec.structs import replace

from app.models import reading
from app.models.config import ConfigError, ExpertsConfig, ModelConfig
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
)
from app.models.reading_experts import check_experts, expert_count, with_experts


class _Fields(DecoderFields, kw_only=True):
    """Those of a decoder and of its experts, with transformers' defaults."""

    rms_norm_eps: Epsilon = 1e-5
    tie_word_embeddings: bool | None = True
    use_bias: bool | None = False
    moe_num_experts: Count | None = None
    num_experts: Count | None = None
    num_local_experts: Count | None = None
    """The same under its other names."""
    moe_k: Positive | None = None
    num_experts_per_tok: Positive | None = None
    """The same under its other name."""
    moe_intermediate_size: Positive = 1536
    moe_num_shared_experts: Count = 2
    moe_layer_start_index: Count = 1
    moe_layer_end_index: Annotated[int, msgspec.Meta(ge=-1)] = -1
    """The last layer with experts; -1 for the model's last."""
    moe_layer_interval: Positive = 1
    moe_norm_min: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1e-12


FIELDS_READ: Final = reading.FIELDS_READ | frozenset(_Fields.__struct_fields__)


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    fields = read_fields(config, _Fields, model_types=("ernie4_5_moe",), experts=True)
    if fields.use_bias:
        raise ConfigError("use_bias = True is not supported")
    head_dim = head_dim_of(fields)
    rope = read_rope(config, fields.max_position_embeddings, head_dim, silent_theta=5e5)
    model = gated_decoder(
        architecture,
        config,
        fields,
        windows=no_windows(fields, architecture),
        head_dim=head_dim,
        num_kv_heads=kv_heads_of(fields, silent=4),
        rope=replace(rope, interleaved=True),
        reads=FIELDS_READ,
    )
    last = fields.num_hidden_layers - 1 if fields.moe_layer_end_index == -1 else fields.moe_layer_end_index
    sparse = range(fields.moe_layer_start_index, last + 1)
    return with_experts(
        model, _experts(fields), lambda layer: layer in sparse and (layer + 1) % fields.moe_layer_interval == 0
    )


def _experts(fields: _Fields) -> ExpertsConfig:
    names = ("moe_num_experts", "num_experts", "num_local_experts")
    experts = ExpertsConfig(
        count=expert_count({name: getattr(fields, name) for name in names}, silent=64),
        chosen=expert_count({name: getattr(fields, name) for name in ("moe_k", "num_experts_per_tok")}, silent=6),
        width=fields.moe_intermediate_size,
        least_sum=fields.moe_norm_min,
        correction=True,
        shared_width=fields.moe_intermediate_size * fields.moe_num_shared_experts or None,
    )
    check_experts(experts, count="moe_num_experts", chosen="moe_k")
    return experts
