"""Gemma 3: norms on both sides of every sublayer, which multiply by 1 + w; layers with a window between full ones."""

from __future__ import annotations

from app.models.base import Decoder
from app.models.config import LayerConfig, ModelConfig
from app.models.decoder import DecoderLayer, DecoderStack, Parts
from app.models.gemma3.names import NAMES
from app.quant.placement import Placement


def build(config: ModelConfig, /, *, max_positions: int, placement: Placement) -> Decoder:
    """See :class:`app.models.architectures.BuildModel`."""
    parts = Parts(config, max_positions=max_positions, placement=placement)
    layers = [_layer(parts, layer) for layer in config.layers]
    return DecoderStack(parts, NAMES.checkpoint, layers, final_norm=parts.rms_norm(plus_one=True))


def _layer(parts: Parts, config: LayerConfig) -> DecoderLayer:
    return DecoderLayer(
        mixer_norm=parts.rms_norm(plus_one=True),
        mixer=parts.attention(config.mixer, plus_one=True),
        mixer_post_norm=parts.rms_norm(plus_one=True),
        mlp_norm=parts.rms_norm(plus_one=True),
        mlp=parts.mlp(config.mlp),
        mlp_post_norm=parts.rms_norm(plus_one=True),
    )
