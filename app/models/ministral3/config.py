"""A Ministral 3's ``config.json``, or the text part of a Mistral 3 that sees images (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from app.models.config import ConfigError, ModelConfig, PositionScale
from app.models.config_fields import shown
from app.models.config_rope import read_rope
from app.models.reading import (
    BESIDE_FIELDS,
    ROPE_FIELDS,
    DecoderFields,
    Epsilon,
    Positive,
    gated_decoder,
    head_dim_of,
    kv_heads_of,
    read_fields,
    text_part,
    windows_of_types,
    with_layers,
)

_SEEING: Final = "Mistral3ForConditionalGeneration"
_MISTRAL, _MINISTRAL = "mistral", "ministral3"
_BETA = "llama_4_scaling_beta"
_DEFAULT_ROPE: Final = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    _BETA: 0.1,
}
"""Rotary settings of a Ministral 3 whose config has none."""


class _MistralFields(DecoderFields, kw_only=True):
    """As transformers reads a Mistral's."""

    sliding_window: Positive | None = 4096


class _Fields(DecoderFields, kw_only=True):
    rms_norm_eps: Epsilon = 1e-5
    head_dim: Positive | None = 128
    sliding_window: Positive | None = None


FIELDS_READ: Final = frozenset(_Fields.__struct_fields__) | BESIDE_FIELDS | ROPE_FIELDS | {"text_config"}


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    sees, text = architecture == _SEEING, text_part(config)
    kind = text.get("model_type") or (_MISTRAL if sees else _MINISTRAL)
    known = (_MISTRAL, _MINISTRAL) if sees else (_MINISTRAL,)
    fields = read_fields(text, _MistralFields if kind == _MISTRAL else _Fields, model_types=known)
    if kind == _MINISTRAL and not (text.get("rope_scaling") or text.get("rope_parameters")):
        text = {**text, "rope_parameters": _DEFAULT_ROPE}
    head_dim = head_dim_of(fields)
    implied = frozenset({_BETA, "max_position_embeddings"}) if kind == _MINISTRAL else frozenset[str]()
    model = gated_decoder(
        architecture,
        text,
        fields,
        windows=_windows(fields),
        head_dim=head_dim,
        num_kv_heads=kv_heads_of(fields, silent=8),
        reads=FIELDS_READ,
        rope=read_rope(text, fields.max_position_embeddings, head_dim, implied=implied),
    )
    if sees:
        tied = fields.tie_word_embeddings is not False
        model = msgspec.structs.replace(model, tie_word_embeddings=tied)
    scale = _query_scale(text) if kind == _MINISTRAL else None
    return with_layers(model, [{"query_scale": scale}] * model.num_layers)


def _windows(fields: DecoderFields) -> tuple[int | None, ...]:
    """All layers slide, or none."""
    window = fields.sliding_window if isinstance(fields.sliding_window, int) else None
    windows = (window,) * fields.num_hidden_layers
    types = fields.layer_types
    if types is not None and windows_of_types(types, window, fields.num_hidden_layers) != windows:
        raise ConfigError(f"layer_types = {shown(types)} is not supported: all layers slide, or none")
    return windows


def _query_scale(text: Mapping[str, Any]) -> PositionScale | None:
    """Scale of queries by position, of the rotary settings, in whose original context positions count alike."""
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    beta, interval = rope.get(_BETA), rope.get("original_max_position_embeddings")
    if not beta:
        return None
    if not isinstance(beta, int | float) or isinstance(beta, bool) or not 0 < beta < 1e3:
        raise ConfigError(f"rope_parameters.{_BETA} = {shown(beta)} is not a factor")
    if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
        raise ConfigError(f"rope_parameters.original_max_position_embeddings = {shown(interval)} is needed for {_BETA}")
    return PositionScale(beta=float(beta), interval=interval)
