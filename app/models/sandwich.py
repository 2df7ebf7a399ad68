"""The decoder with a norm on both sides of every sublayer, attention and then a gated MLP or experts.

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


def sandwich(names: DecoderNames, *, plus_one: bool) -> BuildModel:
    """The ``build`` of a family whose checkpoints call modules by ``names``.

    Args:
        plus_one: checkpoints hold w where norms multiply by 1 + w.
    """

    def build(config: ModelConfig, /, *, max_positions: int, placement: Placement) -> Decoder:
        parts = Parts(config, max_positions=max_positions, placement=placement)
        layers = [_layer(parts, layer, plus_one) for layer in config.layers]
        return DecoderStack(parts, names, layers, final_norm=parts.rms_norm(plus_one=plus_one))

    return build


def _layer(parts: Parts, config: LayerConfig, plus_one: bool) -> DecoderLayer:
    return DecoderLayer(
        mixer_norm=parts.rms_norm(plus_one=plus_one),
        mixer=parts.attention(config.mixer, plus_one=plus_one),
        mixer_post_norm=parts.rms_norm(plus_one=plus_one),
        mlp_norm=parts.rms_norm(plus_one=plus_one),
        mlp=parts.feed_forward(config.mlp),
        mlp_post_norm=parts.rms_norm(plus_one=plus_one),
    )
