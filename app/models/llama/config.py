"""A Llama's ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.models.config import ModelConfig
from app.models.reading import DecoderFields, gated_decoder, head_dim_of, kv_heads_of, no_windows, read_fields


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    fields = read_fields(config, DecoderFields, model_types=("llama",))
    bias = bool(fields.attention_bias)
    return gated_decoder(
        architecture,
        config,
        fields,
        windows=no_windows(fields, architecture),
        head_dim=head_dim_of(fields),
        num_kv_heads=kv_heads_of(fields),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bool(fields.mlp_bias),
    )
