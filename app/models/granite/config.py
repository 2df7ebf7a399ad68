"""A Granite's ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from app.models.config import ModelConfig
from app.models.reading import (
    BESIDE_FIELDS,
    ROPE_FIELDS,
    DecoderFields,
    gated_decoder,
    head_dim_of,
    kv_heads_of,
    no_windows,
    read_fields,
    with_layers,
)

_Factor = Annotated[float, msgspec.Meta(gt=0, lt=1e6)]


class _Fields(DecoderFields, kw_only=True):
    embedding_multiplier: _Factor = 1.0
    attention_multiplier: _Factor = 1.0
    """In place of the root of a head's width, not beside it."""
    residual_multiplier: _Factor = 1.0
    logits_scaling: _Factor = 1.0
    """Logits are divided by it."""


FIELDS_READ: Final = frozenset(_Fields.__struct_fields__) | BESIDE_FIELDS | ROPE_FIELDS


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    fields = read_fields(config, _Fields, model_types=("granite",))
    bias = bool(fields.attention_bias)
    model = gated_decoder(
        architecture,
        config,
        fields,
        windows=no_windows(fields, architecture),
        head_dim=head_dim_of(fields),
        num_kv_heads=kv_heads_of(fields),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bool(fields.mlp_bias),
        reads=FIELDS_READ,
    )
    added = {"output_scale": fields.residual_multiplier}
    attention = {"scale": fields.attention_multiplier, **added}
    return msgspec.structs.replace(
        with_layers(model, [attention] * model.num_layers, added),
        embedding_scale=fields.embedding_multiplier,
        logit_scale=1 / fields.logits_scaling,
    )
