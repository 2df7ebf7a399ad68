"""A Qwen3's ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.models.config import ModelConfig
from app.models.reading import (
    FIELDS_READ,
    QK_NORM_FIELDS,
    DecoderFields,
    gated_decoder,
    head_dim_of,
    kv_heads_of,
    later_windows,
    read_fields,
)


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    fields = read_fields(config, DecoderFields, model_types=("qwen3",))
    bias = bool(fields.attention_bias)
    return gated_decoder(
        architecture,
        config,
        fields,
        windows=later_windows(fields),
        head_dim=head_dim_of(fields, silent=128),
        num_kv_heads=kv_heads_of(fields, silent=32),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=True,
        reads=FIELDS_READ | QK_NORM_FIELDS,
    )
