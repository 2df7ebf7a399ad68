"""A dense ERNIE 4.5's ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from app.models.config import ModelConfig
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
    no_windows,
    read_fields,
)

_THETA: Final = 5e5


class _Fields(DecoderFields, kw_only=True):
    rms_norm_eps: Epsilon = 1e-5
    head_dim: Positive | None = 128
    tie_word_embeddings: bool | None = True
    use_bias: bool | None = False
    """Whether every projection has a bias."""


FIELDS_READ: Final = frozenset(_Fields.__struct_fields__) | BESIDE_FIELDS | ROPE_FIELDS


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    fields = read_fields(config, _Fields, model_types=("ernie4_5",))
    bias, head_dim = bool(fields.use_bias), head_dim_of(fields)
    rope = read_rope(config, fields.max_position_embeddings, head_dim, silent_theta=_THETA)
    return gated_decoder(
        architecture,
        config,
        fields,
        windows=no_windows(fields, architecture),
        head_dim=head_dim,
        num_kv_heads=kv_heads_of(fields, silent=2),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
        reads=FIELDS_READ,
        rope=msgspec.structs.replace(rope, interleaved=True),
    )
