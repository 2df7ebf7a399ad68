"""A Mistral's ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from app.models.config import ModelConfig
from app.models.reading import DecoderFields, gated_decoder, head_dim_of, kv_heads_of, read_fields, windows_of_types


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    fields = read_fields(config, DecoderFields, model_types=("mistral", "ministral"))
    return gated_decoder(
        architecture,
        config,
        fields,
        windows=_windows(fields),
        head_dim=head_dim_of(fields),
        num_kv_heads=kv_heads_of(fields, silent=8),
    )


def _windows(fields: DecoderFields) -> tuple[int | None, ...]:
    """All layers slide unless ``layer_types`` says otherwise."""
    window = 4096 if fields.sliding_window is msgspec.UNSET else fields.sliding_window
    if fields.layer_types is not None:
        return windows_of_types(fields.layer_types, window, fields.num_hidden_layers)
    return (window,) * fields.num_hidden_layers
