"""A Qwen2-MoE's ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from app.models import reading
from app.models.config import ExpertsConfig, ModelConfig
from app.models.reading import Count, Positive, gated_decoder, head_dim_of, kv_heads_of, read_fields, windows_of_types
from app.models.reading_experts import SparseFields, check_experts, expert_count, with_experts


class _Fields(SparseFields, kw_only=True):
    """With transformers' defaults."""

    qkv_bias: bool = True
    sliding_window: Count | msgspec.UnsetType | None = msgspec.UNSET
    """transformers 5 writes 0 where no layer slides."""
    num_experts_per_tok: Positive = 4
    moe_intermediate_size: Positive = 1408
    shared_expert_intermediate_size: Positive = 5632


FIELDS_READ: Final = reading.FIELDS_READ | frozenset(_Fields.__struct_fields__)


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    fields = read_fields(config, _Fields, model_types=("qwen2_moe",), experts=True)
    model = gated_decoder(
        architecture,
        config,
        fields,
        windows=_windows(fields),
        head_dim=head_dim_of(fields),
        num_kv_heads=kv_heads_of(fields, silent=16),
        qkv_bias=fields.qkv_bias,
        reads=FIELDS_READ,
    )
    said = {"num_experts": fields.num_experts, "num_local_experts": fields.num_local_experts}
    count = expert_count(said, silent=60)
    if count == 0:
        return model
    experts = ExpertsConfig(
        count=count,
        chosen=fields.num_experts_per_tok,
        width=fields.moe_intermediate_size,
        normalise=fields.norm_topk_prob,
        shared_width=fields.shared_expert_intermediate_size,
        shared_gate=True,
    )
    check_experts(experts)
    return with_experts(model, experts, fields.is_sparse)


def _windows(fields: _Fields) -> tuple[int | None, ...]:
    """Every other of the first ``max_window_layers`` slides with ``use_sliding_window``, or as ``layer_types`` says."""
    window = 4096 if fields.sliding_window is msgspec.UNSET else fields.sliding_window
    window = (window or None) if fields.use_sliding_window else None
    if fields.layer_types is not None:
        return windows_of_types(fields.layer_types, window, fields.num_hidden_layers)
    sliding = 28 if fields.max_window_layers is None else fields.max_window_layers
    return tuple(window if i < sliding and i % 2 == 0 else None for i in range(fields.num_hidden_layers))
