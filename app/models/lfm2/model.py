"""Pre-norm layers of a gated short convolution or of attention, and of an MLP or experts."""

from __future__ import annotations

from app.layers.blocks import Mixer
from app.models.base import Decoder
from app.models.config import LayerConfig, ModelConfig, ShortConvConfig
from app.models.decoder import DecoderLayer, DecoderStack
from app.models.lfm2.names import NAMES
from app.models.parts import Parts
from app.quant.placement import Placement


def build(config: ModelConfig, /, *, max_positions: int, placement: Placement) -> Decoder:
    """See :class:`app.models.architecture.BuildModel`."""
    parts = Parts(config, max_positions=max_positions, placement=placement)
    layers = [_layer(parts, layer) for layer in config.layers]
    return DecoderStack(parts, NAMES.checkpoint, layers, final_norm=parts.rms_norm())


def _layer(parts: Parts, config: LayerConfig) -> DecoderLayer:
    mixer: Mixer
    mixer = (parts.short_conv if isinstance(config.mixer, ShortConvConfig) else parts.attention)(config.mixer)
    return DecoderLayer(
        mixer_norm=parts.rms_norm(),
        mixer=mixer,
        mlp_norm=parts.rms_norm(),
        mlp=parts.feed_forward(config.mlp),
    )
