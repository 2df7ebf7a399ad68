"""A GPT-NeoX's ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from app.models.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig
from app.models.config_fields import refuse_number_changing
from app.models.config_rope import read_rope
from app.models.reading import (
    BESIDE_FIELDS,
    GELU,
    ROPE_FIELDS,
    Epsilon,
    NumLayers,
    Positive,
    activation_of,
    context_of,
    read_fields,
    share_of_width,
)


class _Fields(msgspec.Struct, kw_only=True):
    """With the defaults that transformers gives absent ones, but for the sizes."""

    vocab_size: Positive
    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: NumLayers
    num_attention_heads: Positive
    max_position_embeddings: Positive
    head_dim: Positive | None = None
    hidden_act: Any = "gelu"
    layer_norm_eps: Epsilon = 1e-5
    attention_bias: bool = True
    use_parallel_residual: bool = True
    tie_word_embeddings: bool | None = False


_ROPE_NAMES: Final[Mapping[str, str]] = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}
"""What published configs have beside the rotary settings -> what others call it."""
_ROTATED: Final = 0.25
"""Share of a head where the config is silent."""
FIELDS_READ: Final = frozenset(_Fields.__struct_fields__) | BESIDE_FIELDS | ROPE_FIELDS | _ROPE_NAMES.keys()


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    fields = read_fields(config, _Fields, model_types=("gpt_neox",))
    head_dim = share_of_width(fields.hidden_size, fields.num_attention_heads, fields.head_dim)
    refuse_number_changing(config, FIELDS_READ, head_dim)
    own = {theirs: config.get(name) for name, theirs in _ROPE_NAMES.items()}
    rope = read_rope({**config, **own}, fields.max_position_embeddings, head_dim, partial=_ROTATED)
    attention = AttentionConfig(
        num_heads=fields.num_attention_heads,
        num_kv_heads=fields.num_attention_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=rope,
        qkv_bias=fields.attention_bias,
        o_bias=fields.attention_bias,
    )
    mlp = MlpConfig(
        width=fields.intermediate_size,
        activation=activation_of(fields.hidden_act, "hidden_act", GELU),
        gated=False,
        bias=True,
    )
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.vocab_size,
        hidden_size=fields.hidden_size,
        norm_eps=fields.layer_norm_eps,
        layers=(LayerConfig(attention, mlp, fields.use_parallel_residual),) * fields.num_hidden_layers,
        context_length=context_of(fields.max_position_embeddings, rope),
        tie_word_embeddings=bool(fields.tie_word_embeddings),
    )
