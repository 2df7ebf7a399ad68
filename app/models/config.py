"""A model's shape: one record for each layer (torch-free).

Families read it out of a ``config.json`` (:func:`app.models.architectures.parse_config`); everything that needs a size
or a kind of layer asks here.
"""

from __future__ import annotations

import msgspec

from app.layers.config import (
    AttentionConfig,
    DeltaConfig,
    ExpertsConfig,
    FeedForwardConfig,
    MixerConfig,
    MlpConfig,
    Rope,
)
from app.models.config_fields import ConfigError

__all__ = [
    "AttentionConfig",
    "ConfigError",
    "DeltaConfig",
    "ExpertsConfig",
    "LayerConfig",
    "MlpConfig",
    "ModelConfig",
    "Rope",
]


class LayerConfig(msgspec.Struct, frozen=True):
    """One layer: what mixes tokens, then what works on each alone."""

    mixer: MixerConfig
    mlp: FeedForwardConfig


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder's shape."""

    architecture: str
    """The name of ``config.json``'s ``architectures`` that it was read as."""
    vocab_size: int
    hidden_size: int
    norm_eps: float
    layers: tuple[LayerConfig, ...]
    context_length: int
    """Tokens of the longest sequence the model is made for."""
    tie_word_embeddings: bool
    positions: int | None = None
    """Rows of a table of learned positions; None: there is none."""
    embedding_scale: float = 1.0
    """Factor on the token embeddings."""
    logit_softcap: float | None = None
    """Logits x become ``logit_softcap * tanh(x / logit_softcap)``."""

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def attentions(self) -> tuple[AttentionConfig, ...]:
        """The mixers that keep keys and values, in order."""
        return tuple(layer.mixer for layer in self.layers if isinstance(layer.mixer, AttentionConfig))
