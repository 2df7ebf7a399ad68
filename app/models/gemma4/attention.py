"""Attention of a Gemma 4's layers: what they see, whose keys they use, how wide their heads are (torch-free)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from app.layers.rope_scaling import LinearScaling
from app.models.config import AttentionConfig, ConfigError, Rope
from app.models.config_fields import shown
from app.models.config_rope import rope_of
from app.models.gemma4.fields import Fields, Heads
from app.models.reading import check_heads, windows_of_types

_FULL, _SLIDING = "full_attention", "sliding_attention"
_ROPES: Final = {
    _FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
    _SLIDING: {"rope_type": "default", "rope_theta": 1e4},
}
"""Rotary settings of each type of layers where the config has none."""
_PERIOD: Final = 6
"""Every such layer sees all positions where the config does not say which do."""


def attentions_of(fields: Fields) -> list[AttentionConfig]:
    """Attention of each layer.

    Raises:
        ConfigError: a field is malformed or not supported.
    """
    types = _layer_types(fields)
    windows = windows_of_types(types, fields.sliding_window, fields.num_hidden_layers)
    sources, said = _sources(fields, types), _heads(fields)
    attentions = [
        _attention(fields, said, index, kind, window, source)
        for index, (kind, window, source) in enumerate(zip(types, windows, sources, strict=True))
    ]
    for index, (attention, source) in enumerate(zip(attentions, sources, strict=True)):
        kept = attention if source is None else attentions[source]
        if (kept.head_dim, kept.num_kv_heads) != (attention.head_dim, attention.num_kv_heads):
            raise ConfigError(f"per_layer_config: layer {index} has other heads than {source}, whose keys it uses")
    return attentions


def _layer_types(fields: Fields) -> list[str]:
    """Type of each layer; the last sees all positions, whatever the config says, as transformers has it."""
    count = fields.num_hidden_layers
    types = fields.layer_types
    if types is None:
        types = [_SLIDING if (i + 1) % _PERIOD else _FULL for i in range(count)]
    return [*types[:-1], _FULL] if types else types


def _sources(fields: Fields, types: Sequence[str]) -> list[int | None]:
    """Layer whose keys and values each uses, None for its own: for the last ones, the last of their type before."""
    count, shared = fields.num_hidden_layers, fields.num_kv_shared_layers or 0
    own = list(types[: count - shared]) if shared < count else []
    if not set(own) >= set(types):
        raise ConfigError(f"num_kv_shared_layers = {shared} of {count} leave layers without keys and values to use")
    last = {kind: len(own) - 1 - own[::-1].index(kind) for kind in set(own)}
    return [None if index < count - shared else last[kind] for index, kind in enumerate(types)]


def _heads(fields: Fields) -> dict[int, Heads] | None:
    """What ``per_layer_config``, which transformers 5 writes, says of layers; without one wide heads are by type."""
    if fields.per_layer_config is None:
        return None
    for key in fields.per_layer_config:
        if not key.isdecimal():
            raise ConfigError(f"per_layer_config: {shown(key)} is no index of a layer")
    return {int(key): heads for key, heads in fields.per_layer_config.items()}  # "05" and "5" alike


def _attention(
    fields: Fields, said: dict[int, Heads] | None, index: int, kind: str, window: int | None, source: int | None
) -> AttentionConfig:
    full = kind == _FULL
    key_is_value = bool(fields.attention_k_eq_v) and full
    head_dim, kv_heads = fields.head_dim, fields.num_key_value_heads
    if said is not None:
        heads = said.get(index, Heads())
        head_dim, kv_heads = heads.head_dim or head_dim, heads.num_key_value_heads or kv_heads
    elif full:
        head_dim = fields.global_head_dim
        kv_heads = (fields.num_global_key_value_heads if key_is_value else None) or kv_heads
    check_heads(fields.num_attention_heads, kv_heads, head_dim)
    bias = bool(fields.attention_bias)
    return AttentionConfig(
        num_heads=fields.num_attention_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        scale=1.0,
        rope=_rope(fields, kind, head_dim),
        window=window,
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=True,
        value_norm=True,
        key_is_value=key_is_value,
        pages_of=source,
    )


def _rope(fields: Fields, kind: str, head_dim: int) -> Rope:
    """Rotary settings of a type of layers. *Proportional* ones rotate a part of what a whole head's would."""
    by_type = _ROPES if fields.rope_parameters is None else fields.rope_parameters
    if not by_type.keys() <= _ROPES.keys():
        raise ConfigError(f"rope_parameters = {shown(by_type)} are not {' and '.join(map(repr, _ROPES))}")
    rope, field = dict(by_type.get(kind) or {}), f"rope_parameters.{kind}"
    if rope.get("rope_type") != "proportional":
        return rope_of(rope, field, {}, fields.max_position_embeddings, head_dim)
    share, factor = rope.pop("partial_rotary_factor", 1.0), rope.pop("factor", 1.0)
    for name, value in (("partial_rotary_factor", share), ("factor", factor)):
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ConfigError(f"{field}.{name} = {shown(value)} is not a positive number")
    pairs = int(share * head_dim // 2)
    if not 0 < pairs <= head_dim // 2:
        raise ConfigError(f"{field}.partial_rotary_factor = {shown(share)} rotates {pairs} pairs of {head_dim}")
    whole = rope_of({**rope, "rope_type": "default"}, field, {}, fields.max_position_embeddings, head_dim)
    return msgspec.structs.replace(
        whole,
        width=2 * pairs,
        spread=None if 2 * pairs == head_dim else head_dim,
        scaling=None if factor == 1 else LinearScaling(factor=float(factor)),
    )
