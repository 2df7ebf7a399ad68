"""A GPT-2's ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from app.layers.config import Activation
from app.models.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig
from app.models.config_fields import ConfigError, refuse_number_changing, shown
from app.models.reading import BESIDE_FIELDS, GELU, Epsilon, NumLayers, Positive, activation_of, read_fields


class _Fields(msgspec.Struct, kw_only=True):
    """Fields of a GPT-2's config, with the defaults that transformers gives absent ones; sizes have none."""

    vocab_size: Positive
    n_positions: Positive
    n_embd: Positive
    n_layer: NumLayers
    n_head: Positive
    n_inner: Positive | None = None
    activation_function: Any = "gelu_new"
    layer_norm_epsilon: Epsilon = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    """Whether scores are fp32; here they always are."""
    tie_word_embeddings: bool | None = True


_OTHER_NAMES: Final[Mapping[str, str]] = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
"""Names of fields that transformers reads as well -> names that it writes. It does not read ``n_ctx`` of old files."""
FIELDS_READ: Final = frozenset(_Fields.__struct_fields__) | BESIDE_FIELDS | _OTHER_NAMES.keys()
_ACTIVATIONS: Final[Mapping[str, Activation]] = {**GELU, "relu2": "relu2"}


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    fields = read_fields(_with_own_names(config), _Fields, model_types=("gpt2",))
    if fields.n_embd % fields.n_head:
        raise ConfigError(f"n_head = {fields.n_head} does not divide n_embd = {fields.n_embd}")
    head_dim = fields.n_embd // fields.n_head
    refuse_number_changing(config, FIELDS_READ, head_dim)
    mlp = MlpConfig(
        width=fields.n_inner or 4 * fields.n_embd,
        activation=activation_of(fields.activation_function, "activation_function", _ACTIVATIONS),
        gated=False,
        bias=True,
    )
    scale = head_dim**-0.5 if fields.scale_attn_weights else 1.0

    def layer(index: int) -> LayerConfig:
        attention = AttentionConfig(
            num_heads=fields.n_head,
            num_kv_heads=fields.n_head,
            head_dim=head_dim,
            scale=scale / (index + 1) if fields.scale_attn_by_inverse_layer_idx else scale,
            rope=None,
            qkv_bias=True,
            o_bias=True,
        )
        return LayerConfig(attention, mlp)

    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.vocab_size,
        hidden_size=fields.n_embd,
        norm_eps=fields.layer_norm_epsilon,
        layers=tuple(map(layer, range(fields.n_layer))),
        context_length=fields.n_positions,
        tie_word_embeddings=bool(fields.tie_word_embeddings),
        positions=fields.n_positions,
    )


def _with_own_names(config: Mapping[str, Any]) -> Mapping[str, Any]:
    renamed = dict(config)
    for other, own in _OTHER_NAMES.items():
        value = renamed.pop(other, None)
        if value is not None and renamed.setdefault(own, value) != value:
            raise ConfigError(f"{other} = {shown(value)} and {own} = {shown(renamed[own])} are one field")
    return renamed
