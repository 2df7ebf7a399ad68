"""A Qwen3-MoE's ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from app.models import reading
from app.models.config import ConfigError, ExpertsConfig, ModelConfig
from app.models.config_fields import shown
from app.models.reading import (
    QK_NORM_FIELDS,
    Positive,
    gated_decoder,
    head_dim_of,
    kv_heads_of,
    read_fields,
    windows_of_types,
)
from app.models.reading_experts import SparseFields, check_experts, expert_count, with_experts


class _Fields(SparseFields, kw_only=True):
    """With transformers' defaults."""

    num_experts_per_tok: Positive = 8
    moe_intermediate_size: Positive = 768


FIELDS_READ: Final = reading.FIELDS_READ | frozenset(_Fields.__struct_fields__)


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    fields = read_fields(config, _Fields, model_types=("qwen3_moe",), experts=True)
    bias = bool(fields.attention_bias)
    model = gated_decoder(
        architecture,
        config,
        fields,
        windows=_windows(fields),
        head_dim=head_dim_of(fields),
        num_kv_heads=kv_heads_of(fields, silent=4),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=True,
        reads=FIELDS_READ | QK_NORM_FIELDS,
    )
    said = {"num_experts": fields.num_experts, "num_local_experts": fields.num_local_experts}
    count = expert_count(said, silent=128)
    if count == 0:
        return model
    experts = ExpertsConfig(
        count=count,
        chosen=fields.num_experts_per_tok,
        width=fields.moe_intermediate_size,
        normalise=fields.norm_topk_prob,
    )
    check_experts(experts)
    return with_experts(model, experts, fields.is_sparse)


def _windows(fields: _Fields) -> tuple[int | None, ...]:
    """Window of each layer: all layers slide, or none, whatever ``max_window_layers`` says."""
    window = 4096 if fields.sliding_window is msgspec.UNSET else fields.sliding_window
    windows = (window if fields.use_sliding_window else None,) * fields.num_hidden_layers
    if fields.layer_types is not None and windows_of_types(fields.layer_types, windows[0], len(windows)) != windows:
        raise ConfigError(f"layer_types = {shown(fields.layer_types)} is not supported: layers slide all or none")
    return windows
