"""A Gemma 4's ``config.json``, or the text part of one that sees and hears too (torch-free)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from app.layers.config import FeedForwardConfig
from app.models.config import ConfigError, ExpertsConfig, LayerConfig, LayerInputsConfig, MlpConfig, ModelConfig
from app.models.config_fields import refuse_number_changing
from app.models.gemma4.attention import attentions_of
from app.models.gemma4.fields import Fields
from app.models.reading import BESIDE_FIELDS, GELU, activation_of, context_of, read_fields, text_part
from app.models.reading_experts import check_experts

FIELDS_READ: Final = frozenset(Fields.__struct_fields__) | BESIDE_FIELDS | {"text_config"}


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    text = text_part(config)
    fields = read_fields(text, Fields, model_types=("gemma4_text",), experts=True)
    refuse_number_changing(text, FIELDS_READ, fields.head_dim)
    attentions = attentions_of(fields)
    feed_forward = _feed_forward(fields)
    wide = 2 if fields.use_double_wide_mlp else 1
    layers = [
        LayerConfig(attention, feed_forward[0 if attention.pages_of is None else wide - 1], factor=True)
        for attention in attentions
    ]
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.vocab_size,
        hidden_size=fields.hidden_size,
        norm_eps=fields.rms_norm_eps,
        layers=tuple(layers),
        context_length=context_of(fields.max_position_embeddings, attentions[-1].rope),
        tie_word_embeddings=fields.tie_word_embeddings is not False,
        embedding_scale=math.sqrt(fields.hidden_size),
        logit_softcap=fields.final_logit_softcapping,
        layer_inputs=_layer_inputs(fields),
    )


def _feed_forward(fields: Fields) -> tuple[FeedForwardConfig, FeedForwardConfig]:
    """Feed-forward parts: that of layers with keys and values of their own, and that of the others, twice as wide."""
    accepted = {name: function for name, function in GELU.items() if function == "gelu_tanh"}
    activation = activation_of(fields.hidden_activation, "hidden_activation", accepted)
    widths = (fields.intermediate_size, 2 * fields.intermediate_size)
    if not fields.enable_moe_block:
        return MlpConfig(width=widths[0], activation=activation), MlpConfig(width=widths[1], activation=activation)
    for name in ("num_experts", "top_k_experts", "moe_intermediate_size"):
        if getattr(fields, name) is None:
            raise ConfigError(f"{name} is missing beside enable_moe_block")
    experts = ExpertsConfig(
        count=fields.num_experts or 0,
        chosen=fields.top_k_experts or 0,
        width=fields.moe_intermediate_size or 0,
        activation=activation,
        shared_width=widths[0],
        apart=True,
    )
    check_experts(experts, chosen="top_k_experts")
    return experts, msgspec.structs.replace(experts, shared_width=widths[1])


def _layer_inputs(fields: Fields) -> LayerInputsConfig | None:
    width, rows = fields.hidden_size_per_layer_input, fields.vocab_size_per_layer_input
    if not width:
        return None
    if rows < fields.vocab_size:
        raise ConfigError(f"vocab_size_per_layer_input = {rows} is less than vocab_size = {fields.vocab_size}")
    return LayerInputsConfig(vocab_size=rows, width=width)
