"""A Phi-3's ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from app.models.config import ModelConfig
from app.models.config_fields import ConfigError, shown
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
)


class _Fields(DecoderFields, kw_only=True):
    """Where transformers' defaults are others than most decoders'."""

    rms_norm_eps: Epsilon = 1e-5
    original_max_position_embeddings: Positive = 4096
    sliding_window: Positive | None = None


_UNUSED: Final = {"attention_bias", "layer_types", "max_window_layers", "mlp_bias", "use_sliding_window"}
"""Fields of others that say nothing of this family."""
FIELDS_READ: Final = frozenset(_Fields.__struct_fields__) - _UNUSED | BESIDE_FIELDS | ROPE_FIELDS
_LONG: Final = ("longrope", "su", "yarn")
"""What configs have called LongRoPE, whose factors they hold."""


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    fields = read_fields(config, _Fields, model_types=("phi3",))
    return gated_decoder(
        architecture,
        {**_with_long_rope(config), "original_max_position_embeddings": fields.original_max_position_embeddings},
        fields,
        windows=(fields.sliding_window,) * fields.num_hidden_layers,
        head_dim=head_dim_of(fields),
        num_kv_heads=kv_heads_of(fields),
        partial=1.0,
        reads=FIELDS_READ,
    )


def _with_long_rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config with today's name of its rotary settings' type."""
    field = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rope = config.get(field) or {}
    if not isinstance(rope, dict):
        raise ConfigError(f"{field} = {shown(rope)} is not an object")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind in _LONG:
        return {**config, field: {**rope, "rope_type": "longrope"}}
    if kind != "default":
        raise ConfigError(f"{field}.rope_type = {shown(kind)} is not supported; supported are default and longrope")
    return config
