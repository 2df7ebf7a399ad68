"""A MiniCPM3's ``config.json`` (torch-free)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from app.models.config import LayerConfig, MlpConfig, ModelConfig
from app.models.config_fields import refuse_number_changing
from app.models.latent_reading import LatentFields, read_latent
from app.models.reading import (
    BESIDE_FIELDS,
    ROPE_FIELDS,
    SILU,
    Epsilon,
    Positive,
    activation_of,
    context_of,
    no_windows,
    read_fields,
)

_Factor = Annotated[float, msgspec.Meta(gt=0, lt=1e9)]


class _Fields(LatentFields, kw_only=True):
    """With transformers' defaults, which are those of the 4B."""

    q_lora_rank: Positive | None = 768
    kv_lora_rank: Positive = 256
    qk_nope_head_dim: Positive = 64
    qk_rope_head_dim: Positive = 32
    v_head_dim: Positive | None = None
    rms_norm_eps: Epsilon = 1e-5
    tie_word_embeddings: bool | None = True
    scale_emb: _Factor = 12.0
    scale_depth: _Factor | None = 1.4
    """What a sublayer makes counts this, over the root of the number of layers; None: it counts whole."""
    dim_model_base: Positive | None = 256
    """Logits count this, over the model's width; None: they count whole."""


FIELDS_READ: Final = frozenset(_Fields.__struct_fields__) | BESIDE_FIELDS | ROPE_FIELDS


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    fields = read_fields(config, _Fields, model_types=("minicpm3",))
    activation = activation_of(fields.hidden_act, "hidden_act", SILU)
    refuse_number_changing(config, FIELDS_READ, fields.qk_nope_head_dim + fields.qk_rope_head_dim)
    no_windows(fields, architecture)
    scale = 1.0 if fields.scale_depth is None else fields.scale_depth / math.sqrt(fields.num_hidden_layers)
    v_dim = fields.v_head_dim or fields.hidden_size // fields.num_attention_heads
    mixer = read_latent(config, fields, v_dim=v_dim, interleaved=False, output_scale=scale)
    bias = bool(fields.mlp_bias)
    mlp = MlpConfig(width=fields.intermediate_size, activation=activation, bias=bias, output_scale=scale)
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.vocab_size,
        hidden_size=fields.hidden_size,
        norm_eps=fields.rms_norm_eps,
        layers=(LayerConfig(mixer, mlp),) * fields.num_hidden_layers,
        context_length=context_of(fields.max_position_embeddings, mixer.rope),
        tie_word_embeddings=bool(fields.tie_word_embeddings),
        embedding_scale=fields.scale_emb,
        logit_scale=1.0 if fields.dim_model_base is None else fields.dim_model_base / fields.hidden_size,
    )
