"""A Granite-MoE's ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from app.models import reading
from app.models.config import ExpertsConfig, ModelConfig
from app.models.reading import (
    Count,
    DecoderFields,
    Positive,
    gated_decoder,
    head_dim_of,
    kv_heads_of,
    no_windows,
    read_fields,
    with_layers,
)
from app.models.reading_experts import check_experts, expert_count, with_experts

_SHARED = "GraniteMoeSharedForCausalLM"
_Factor = Annotated[float, msgspec.Meta(gt=0, lt=1e6)]


class _Fields(DecoderFields, kw_only=True):
    """Those of a decoder and of its experts, with transformers' defaults."""

    embedding_multiplier: _Factor = 1.0
    attention_multiplier: _Factor = 1.0
    """In place of the root of a head's width, not beside it."""
    residual_multiplier: _Factor = 1.0
    logits_scaling: _Factor = 1.0
    """Logits are divided by it."""
    num_local_experts: Count | None = None
    num_experts_per_tok: Positive = 2
    shared_intermediate_size: Count = 0


FIELDS_READ: Final = reading.FIELDS_READ | frozenset(_Fields.__struct_fields__)


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    shares = architecture == _SHARED
    fields = read_fields(config, _Fields, model_types=("granitemoeshared" if shares else "granitemoe",), experts=True)
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
        reads=FIELDS_READ,
    )
    count = expert_count({"num_local_experts": fields.num_local_experts}, silent=8, dense=False)
    experts = ExpertsConfig(
        count=count,
        chosen=fields.num_experts_per_tok,
        width=fields.intermediate_size,
        scoring="softmax chosen",
        normalise=False,
        shared_width=(fields.shared_intermediate_size or None) if shares else None,
        output_scale=fields.residual_multiplier,
    )
    check_experts(experts, count="num_local_experts")
    attention = {"scale": fields.attention_multiplier, "output_scale": fields.residual_multiplier}
    return msgspec.structs.replace(
        with_experts(with_layers(model, [attention] * model.num_layers), experts),
        embedding_scale=fields.embedding_multiplier,
        logit_scale=1 / fields.logits_scaling,
    )
