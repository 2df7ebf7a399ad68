"""A Cohere's or Cohere 2's ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from app.models.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig
from app.models.config_fields import ConfigError, refuse_number_changing, shown
from app.models.config_rope import read_rope
from app.models.reading import (
    BESIDE_FIELDS,
    ROPE_FIELDS,
    SILU,
    DecoderFields,
    Epsilon,
    Positive,
    activation_of,
    context_of,
    kv_heads_of,
    read_fields,
    share_of_width,
    windows_of_types,
)

SLIDING: Final = "Cohere2ForCausalLM"
"""The architecture with layers that slide, which alone rotate."""


class _Fields(DecoderFields, kw_only=True):
    """Where transformers' defaults are others than most decoders'."""

    layer_norm_eps: Epsilon = 1e-5
    logit_scale: float = 0.0625
    tie_word_embeddings: bool | None = True
    sliding_window: Positive | None = 4096
    sliding_window_pattern: Positive = 4
    position_embedding_type: str | None = None


_UNUSED: Final = {"max_window_layers", "mlp_bias", "rms_norm_eps", "use_sliding_window"}
"""Fields of others that say nothing of these."""
FIELDS_READ: Final = frozenset(_Fields.__struct_fields__) - _UNUSED | BESIDE_FIELDS | ROPE_FIELDS
_THETA: Final = {"CohereForCausalLM": 500_000.0, SLIDING: 10_000.0}
"""Base of the frequencies where the config is silent."""


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    slides = architecture == SLIDING
    fields = read_fields(config, _Fields, model_types=("cohere2",) if slides else ("cohere",))
    if fields.position_embedding_type not in (None, "rope_gptj", "rope"):
        raise ConfigError(f"position_embedding_type = {shown(fields.position_embedding_type)} is not supported")
    head_dim = share_of_width(fields.hidden_size, fields.num_attention_heads, fields.head_dim)
    refuse_number_changing(config, FIELDS_READ, head_dim)
    rope = read_rope(config, fields.max_position_embeddings, head_dim, silent_theta=_THETA[architecture])
    rope = msgspec.structs.replace(rope, interleaved=True)
    bias = bool(fields.attention_bias)
    attention = AttentionConfig(
        num_heads=fields.num_attention_heads,
        num_kv_heads=kv_heads_of(fields),
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=rope,
        qkv_bias=bias,
        o_bias=bias,
    )
    mlp = MlpConfig(width=fields.intermediate_size, activation=activation_of(fields.hidden_act, "hidden_act", SILU))

    def layer(window: int | None) -> LayerConfig:
        rotated = rope if window is not None or not slides else None
        return LayerConfig(msgspec.structs.replace(attention, window=window, rope=rotated), mlp, parallel=True)

    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.vocab_size,
        hidden_size=fields.hidden_size,
        norm_eps=fields.layer_norm_eps,
        layers=tuple(map(layer, _windows(fields) if slides else (None,) * fields.num_hidden_layers)),
        context_length=context_of(fields.max_position_embeddings, rope),
        tie_word_embeddings=fields.tie_word_embeddings is not False,
        logit_scale=fields.logit_scale,
    )


def _windows(fields: _Fields) -> Sequence[int | None]:
    """Every ``sliding_window_pattern``-th layer sees all positions, unless ``layer_types`` says otherwise."""
    types, count = fields.layer_types, fields.num_hidden_layers
    if types is None:
        period = fields.sliding_window_pattern
        types = ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(count)]
    return windows_of_types(types, fields.sliding_window, count)
