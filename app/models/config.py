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
    GroupsConfig,
    LatentConfig,
    LayerInputsConfig,
    MambaConfig,
    MixerConfig,
    MlpConfig,
    PositionScale,
    Rope,
    ShortConvConfig,
)
from app.models.config_fields import ConfigError
from app.models.quantization import Fp8Scales

__all__ = [
    "AttentionConfig",
    "ConfigError",
    "DeltaConfig",
    "ExpertsConfig",
    "GroupsConfig",
    "LatentConfig",
    "LayerConfig",
    "LayerInputsConfig",
    "MambaConfig",
    "MlpConfig",
    "ModelConfig",
    "PositionScale",
    "Rope",
    "ShortConvConfig",
]


class LayerConfig(msgspec.Struct, frozen=True):
    """One layer: what mixes tokens, then what works on each alone."""

    mixer: MixerConfig
    mlp: FeedForwardConfig
    parallel: bool = False
    """The second works on what the first reads, and both are added to the stream at once."""
    beside: MixerConfig | None = None
    """Another mixer that reads what the first reads; what both make is added to the stream at once."""
    factor: bool = False
    """A learned factor is on the stream behind the layer."""

    @property
    def mixers(self) -> tuple[MixerConfig, ...]:
        """Mixers of the layer: the one, or both."""
        return (self.mixer,) if self.beside is None else (self.mixer, self.beside)


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
    logit_scale: float = 1.0
    """Factor on the logits."""
    logit_softcap: float | None = None
    """Scaled logits x become ``logit_softcap * tanh(x / logit_softcap)``."""
    fp8: Fp8Scales | None = None
    """Scales of weights that the checkpoint holds in FP8; None: it holds none."""
    layer_inputs: LayerInputsConfig | None = None
    """Inputs of its own that every layer has; None: there are none."""

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def mixers(self) -> tuple[MixerConfig, ...]:
        """Mixers of all layers in order, each of which keeps pages or uses those of another."""
        return tuple(mixer for layer in self.layers for mixer in layer.mixers)

    @property
    def keepers(self) -> tuple[int, ...]:
        """Indices of the mixers whose pages each mixer uses: its own, unless it attends over another's."""
        sources = (getattr(mixer, "pages_of", None) for mixer in self.mixers)
        return tuple(index if source is None else source for index, source in enumerate(sources))

    @property
    def attentions(self) -> tuple[AttentionConfig, ...]:
        """The mixers that keep keys and values, in order."""
        return tuple(mixer for mixer in self.mixers if isinstance(mixer, AttentionConfig))

    @property
    def latents(self) -> tuple[LatentConfig, ...]:
        """The mixers that keep latents, in order."""
        return tuple(mixer for mixer in self.mixers if isinstance(mixer, LatentConfig))
