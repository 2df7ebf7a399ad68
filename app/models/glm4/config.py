"""A GLM-4's ``config.json`` (torch-free)."""

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
    gated_decoder,
    head_dim_of,
    kv_heads_of,
    no_windows,
    read_fields,
)

SANDWICHED: Final = "Glm4ForCausalLM"
"""The architecture whose sublayers have norms on both sides."""
_ROTATED = 0.5


class _Fields(DecoderFields, kw_only=True):
    rms_norm_eps: Epsilon = 1.5625e-7
    attention_bias: bool | None = True


FIELDS_READ: Final = frozenset(_Fields.__struct_fields__) | BESIDE_FIELDS | ROPE_FIELDS


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    model_type = "glm4" if architecture == SANDWICHED else "glm"
    fields = read_fields(config, _Fields, model_types=(model_type,))
    head_dim = head_dim_of(fields, silent=128)
    rope = read_rope(config, fields.max_position_embeddings, head_dim, partial=_ROTATED)
    return gated_decoder(
        architecture,
        config,
        fields,
        windows=no_windows(fields, architecture),
        head_dim=head_dim,
        num_kv_heads=kv_heads_of(fields, silent=2),
        qkv_bias=bool(fields.attention_bias),
        reads=FIELDS_READ,
        rope=msgspec.structs.replace(rope, interleaved=True),
    )
