"""Llama-shaped decoders: pre-norm layers of rotary grouped-query attention, and a gated MLP or experts."""

from __future__ import annotations

from app.models.base import Decoder
from app.models.config import LayerConfig, ModelConfig
from app.models.decoder import DecoderLayer, DecoderStack, Parts
from app.models.llama.names import NAMES
from app.quant.placement import Placement


def build(config: ModelConfig, /, *, max_positions: int, placement: Placement) -> Decoder:
    """See :class:`app.models.architectures.BuildModel`."""
    parts = Parts(config, max_positions=max_positions, placement=placement)
    layers = [_layer(parts, layer) for layer in config.layers]
    return DecoderStack(parts, NAMES.checkpoint, layers, final_norm=parts.rms_norm())


def _layer(parts: Parts, config: LayerConfig) -> DecoderLayer:
    return DecoderLayer(
        mixer_norm=parts.rms_norm(),
        mixer=parts.attention(config.mixer),
        mlp_norm=parts.rms_norm(),
        mlp=parts.feed_forward(config.mlp),
    )
