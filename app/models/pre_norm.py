"""The decoder that most families are: a norm ahead of every sublayer, attention, then a gated MLP or experts.

What such families differ in stands in their configs and names.
"""

from __future__ import annotations

from app.models.architecture import BuildModel
from app.models.base import Decoder
from app.models.config import LayerConfig, ModelConfig
from app.models.decoder import DecoderLayer, DecoderStack
from app.models.names import DecoderNames
from app.models.parts import Parts
from app.quant.placement import Placement


def pre_norm(names: DecoderNames) -> BuildModel:
    """The ``build`` of a family whose checkpoints call modules by ``names``."""

    def build(config: ModelConfig, /, *, max_positions: int, placement: Placement) -> Decoder:
        parts = Parts(config, max_positions=max_positions, placement=placement)
        layers = [_layer(parts, layer) for layer in config.layers]
        return DecoderStack(parts, names, layers, final_norm=parts.rms_norm())

    return build


def _layer(parts: Parts, config: LayerConfig) -> DecoderLayer:
    return DecoderLayer(
        mixer_norm=parts.rms_norm(),
        mixer=parts.softmax_attention(config.mixer),
        mlp_norm=parts.rms_norm(),
        mlp=parts.feed_forward(config.mlp),
    )
