"""A Qwen3-MoE's ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from app.layers.config import FeedForwardConfig
from app.models import reading
from app.models.config import ConfigError, ExpertsConfig, ModelConfig
from app.models.config_fields import shown
from app.models.qwen3.config import IMPLIED
from app.models.reading import (
    Count,
    DecoderFields,
    Positive,
    gated_decoder,
    head_dim_of,
    kv_heads_of,
    read_fields,
    windows_of_types,
)

MAX_EXPERTS: Final = 1024
"""That kernels choose among."""


class _Fields(DecoderFields, kw_only=True):
    """Those of a decoder and of its experts, with transformers' defaults."""

    num_experts: Count | None = None
    num_local_experts: Count | None = None
    """The same, as transformers 5 writes it."""
    num_experts_per_tok: Positive = 8
    moe_intermediate_size: Positive = 768
    norm_topk_prob: bool = False
    decoder_sparse_step: Positive = 1
    mlp_only_layers: list[int] | None = None


FIELDS_READ: Final = reading.FIELDS_READ | frozenset(_Fields.__struct_fields__)


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architectures.ReadConfig`."""
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
        reads=FIELDS_READ | IMPLIED,
    )
    experts = _experts(fields)
    if experts is None:
        return model
    dense = set(fields.mlp_only_layers or ())

    def mlp_of(index: int, mlp: FeedForwardConfig) -> FeedForwardConfig:
        return mlp if index in dense or (index + 1) % fields.decoder_sparse_step else experts

    layers = (replace(layer, mlp=mlp_of(index, layer.mlp)) for index, layer in enumerate(model.layers))
    return replace(model, layers=tuple(layers))


def _windows(fields: _Fields) -> tuple[int | None, ...]:
    """All layers slide, or none, whatever ``max_window_layers`` says."""
    window = 4096 if fields.sliding_window is msgspec.UNSET else fields.sliding_window
    windows = (window if fields.use_sliding_window else None,) * fields.num_hidden_layers
    if fields.layer_types is not None and windows_of_types(fields.layer_types, windows[0], len(windows)) != windows:
        raise ConfigError(f"layer_types = {shown(fields.layer_types)} is not supported: layers slide all or none")
    return windows


def _experts(fields: _Fields) -> ExpertsConfig | None:
    """None: all layers are dense."""
    counts = {count for count in (fields.num_experts, fields.num_local_experts) if count is not None} or {128}
    if len(counts) > 1:
        raise ConfigError(
            f"num_experts = {fields.num_experts} and num_local_experts = {fields.num_local_experts} differ"
        )
    count, chosen = counts.pop(), fields.num_experts_per_tok
    if count == 0:
        return None
    if count > MAX_EXPERTS:
        raise ConfigError(f"num_experts = {count} is not supported: more than {MAX_EXPERTS}")
    if chosen > count:
        raise ConfigError(f"num_experts_per_tok = {chosen} is more than num_experts = {count}")
    return ExpertsConfig(
        count=count, chosen=chosen, width=fields.moe_intermediate_size, normalise=fields.norm_topk_prob
    )
