"""An OLMoE's ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from app.models import reading
from app.models.config import ExpertsConfig, ModelConfig
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
    with_layers,
)
from app.models.reading_experts import check_experts, expert_count, with_experts


class _Fields(DecoderFields, kw_only=True):
    """Those of a decoder and of its experts, with transformers' defaults."""

    rms_norm_eps: Epsilon = 1e-5
    num_experts: Count | None = None
    num_local_experts: Count | None = None
    """The same under its other name."""
    num_experts_per_tok: Positive = 8
    norm_topk_prob: bool = False


FIELDS_READ: Final = reading.FIELDS_READ | frozenset(_Fields.__struct_fields__)


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    fields = read_fields(config, _Fields, model_types=("olmoe",), experts=True)
    bias = bool(fields.attention_bias)
    model = gated_decoder(
        architecture,
        config,
        fields,
        windows=no_windows(fields, architecture),
        head_dim=head_dim_of(fields),
        num_kv_heads=kv_heads_of(fields),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=True,
        reads=FIELDS_READ,
    )
    said = {"num_experts": fields.num_experts, "num_local_experts": fields.num_local_experts}
    count = expert_count(said, silent=64, dense=False)
    experts = ExpertsConfig(
        count=count,
        chosen=fields.num_experts_per_tok,
        width=fields.intermediate_size,
        normalise=fields.norm_topk_prob,
    )
    check_experts(experts)
    return with_experts(with_layers(model, [{"qk_norm_whole": True}] * model.num_layers), experts)
