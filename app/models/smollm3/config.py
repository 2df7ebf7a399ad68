"""A SmolLM3's ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from app.models.config import ConfigError, ModelConfig
from app.models.config_rope import read_rope
from app.models.reading import (
    BESIDE_FIELDS,
    ROPE_FIELDS,
    DecoderFields,
    Positive,
    gated_decoder,
    head_dim_of,
    kv_heads_of,
    read_fields,
    windows_of_types,
    with_layers,
)

_THETA: Final = 2e6


class _Fields(DecoderFields, kw_only=True):
    tie_word_embeddings: bool | None = True
    no_rope_layers: list[int | bool] | None = None
    """For each layer whether it rotates, whatever the name says."""
    no_rope_layer_interval: Positive = 4


FIELDS_READ: Final = frozenset(_Fields.__struct_fields__) | BESIDE_FIELDS | ROPE_FIELDS


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    fields = read_fields(config, _Fields, model_types=("smollm3",))
    bias, head_dim, rotated = bool(fields.attention_bias), head_dim_of(fields), _rotated(fields)
    model = gated_decoder(
        architecture,
        config,
        fields,
        windows=_windows(fields, rotated),
        head_dim=head_dim,
        num_kv_heads=kv_heads_of(fields, silent=4),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bool(fields.mlp_bias),
        reads=FIELDS_READ,
        rope=read_rope(config, fields.max_position_embeddings, head_dim, silent_theta=_THETA),
    )
    return with_layers(model, [{} if turns else {"rope": None} for turns in rotated])


def _rotated(fields: _Fields) -> Sequence[bool]:
    """Whether each layer rotates: all but every fourth, unless the config says otherwise."""
    count, given = fields.num_hidden_layers, fields.no_rope_layers
    if given is None:
        return [(index + 1) % fields.no_rope_layer_interval != 0 for index in range(count)]
    if len(given) < count:
        raise ConfigError(f"no_rope_layers has {len(given)} entries, num_hidden_layers = {count}")
    return [bool(turns) for turns in given[:count]]


def _windows(fields: _Fields, rotated: Sequence[bool]) -> Sequence[int | None]:
    """With ``use_sliding_window`` layers slide that do not rotate, or those that ``layer_types`` says."""
    window = fields.sliding_window if fields.use_sliding_window else None
    window = window if isinstance(window, int) else None
    if fields.layer_types is not None:
        return windows_of_types(fields.layer_types, window, fields.num_hidden_layers)
    return [None if turns else window for turns in rotated]
