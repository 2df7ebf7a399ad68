"""A Mixtral's ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from app.models import reading
from app.models.config import ExpertsConfig, ModelConfig
from app.models.config_rope import read_rope
from app.models.reading import Count, DecoderFields, Positive, gated_decoder, head_dim_of, kv_heads_of, read_fields
from app.models.reading_experts import check_experts, expert_count, with_experts


class _Fields(DecoderFields, kw_only=True):
    """Those of a decoder and of its experts, with transformers' defaults."""

    rms_norm_eps: reading.Epsilon = 1e-5
    sliding_window: Positive | None = None
    num_local_experts: Count | None = None
    num_experts: Count | None = None
    """The same under its other name."""
    num_experts_per_tok: Positive = 2


FIELDS_READ: Final = reading.FIELDS_READ | frozenset(_Fields.__struct_fields__)


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    fields = read_fields(config, _Fields, model_types=("mixtral",), experts=True)
    head_dim = head_dim_of(fields)
    model = gated_decoder(
        architecture,
        config,
        fields,
        windows=(fields.sliding_window,) * fields.num_hidden_layers,
        head_dim=head_dim,
        num_kv_heads=kv_heads_of(fields, silent=8),
        rope=read_rope(config, fields.max_position_embeddings, head_dim, silent_theta=1e6),
        reads=FIELDS_READ,
    )
    said = {"num_local_experts": fields.num_local_experts, "num_experts": fields.num_experts}
    count = expert_count(said, silent=8, dense=False)
    experts = ExpertsConfig(count=count, chosen=fields.num_experts_per_tok, width=fields.intermediate_size)
    check_experts(experts, count="num_local_experts")
    return with_experts(model, experts)
