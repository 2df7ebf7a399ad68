"""An OLMo 2's or OLMo 3's ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from app.models.config import ModelConfig, Rope
from app.models.config_rope import read_rope, rope_of_type
from app.models.reading import (
    BESIDE_FIELDS,
    ROPE_FIELDS,
    DecoderFields,
    Epsilon,
    gated_decoder,
    head_dim_of,
    kv_heads_of,
    no_windows,
    read_fields,
    windows_of_types,
    with_layers,
)

_OLMO3 = "Olmo3ForCausalLM"
_FULL, _SLIDING = "full_attention", "sliding_attention"
_PERIOD, _THETA_3 = 4, 5e5
"""Period and base of an OLMo 3: layers from one that sees all positions to the next; where a config is silent."""


class _Fields(DecoderFields, kw_only=True):
    rms_norm_eps: Epsilon = 1e-5


FIELDS_READ: Final = frozenset(_Fields.__struct_fields__) | BESIDE_FIELDS | ROPE_FIELDS


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    slides = architecture == _OLMO3
    fields = read_fields(config, _Fields, model_types=("olmo3",) if slides else ("olmo2",))
    bias, head_dim = bool(fields.attention_bias), head_dim_of(fields)
    windows = _windows(fields) if slides else no_windows(fields, architecture)
    ropes = _ropes(config, fields, head_dim, slides=slides)
    model = gated_decoder(
        architecture,
        config,
        fields,
        windows=windows,
        head_dim=head_dim,
        num_kv_heads=kv_heads_of(fields),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=True,
        reads=FIELDS_READ,
        rope=ropes[_FULL],
    )
    kinds = [_FULL if window is None else _SLIDING for window in windows]
    return with_layers(model, [{"rope": ropes[kind], "qk_norm_whole": True} for kind in kinds])


def _windows(fields: _Fields) -> Sequence[int | None]:
    window = 4096 if fields.sliding_window is msgspec.UNSET else fields.sliding_window
    count = fields.num_hidden_layers
    types = fields.layer_types or [_SLIDING if (index + 1) % _PERIOD else _FULL for index in range(count)]
    return windows_of_types(types, window, count)


def _ropes(config: Mapping[str, Any], fields: _Fields, head_dim: int, *, slides: bool) -> Mapping[str, Rope]:
    """By type of layer; ``rope_scaling`` is of an OLMo 3's layers that see all positions."""
    context = fields.max_position_embeddings
    if not slides:
        return {_FULL: read_rope(config, context, head_dim)}
    return {
        kind: rope_of_type(config, kind, context, head_dim, scaled=_FULL, silent_theta=_THETA_3)
        for kind in (_FULL, _SLIDING)
    }
