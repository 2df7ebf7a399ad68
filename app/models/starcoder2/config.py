"""A StarCoder2's ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from app.models.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig
from app.models.config_fields import refuse_number_changing
from app.models.config_rope import read_rope
from app.models.reading import (
    BESIDE_FIELDS,
    GELU,
    ROPE_FIELDS,
    DecoderFields,
    Epsilon,
    Positive,
    activation_of,
    context_of,
    head_dim_of,
    kv_heads_of,
    read_fields,
)


class _Fields(DecoderFields, kw_only=True):
    """Where transformers' defaults are others than most decoders'."""

    hidden_act: Any = "gelu_pytorch_tanh"
    norm_epsilon: Epsilon = 1e-5
    use_bias: bool = True
    sliding_window: Positive | None = None
    tie_word_embeddings: bool | None = True


_UNUSED: Final = {
    "attention_bias",
    "layer_types",
    "max_window_layers",
    "mlp_bias",
    "rms_norm_eps",
    "use_sliding_window",
}
"""Fields of others that say nothing of this family."""
FIELDS_READ: Final = frozenset(_Fields.__struct_fields__) - _UNUSED | BESIDE_FIELDS | ROPE_FIELDS


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    fields = read_fields(config, _Fields, model_types=("starcoder2",))
    head_dim = head_dim_of(fields)
    refuse_number_changing(config, FIELDS_READ, head_dim)
    rope = read_rope(config, fields.max_position_embeddings, head_dim)
    attention = AttentionConfig(
        num_heads=fields.num_attention_heads,
        num_kv_heads=kv_heads_of(fields, silent=2),
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=rope,
        window=fields.sliding_window,
        qkv_bias=fields.use_bias,
        o_bias=fields.use_bias,
    )
    mlp = MlpConfig(
        width=fields.intermediate_size,
        activation=activation_of(fields.hidden_act, "hidden_act", GELU),
        gated=False,
        bias=fields.use_bias,
    )
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.vocab_size,
        hidden_size=fields.hidden_size,
        norm_eps=fields.norm_epsilon,
        layers=(LayerConfig(attention, mlp),) * fields.num_hidden_layers,
        context_length=context_of(fields.max_position_embeddings, rope),
        tie_word_embeddings=fields.tie_word_embeddings is not False,
    )
