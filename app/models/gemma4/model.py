"""Gemma 4: norms on both sides of every sublayer, then the layer's own input of each token, and a factor on all."""

from __future__ import annotations

from app.layers.norm import NoNorm
from app.models.base import Decoder
from app.models.config import ExpertsConfig, LayerConfig, ModelConfig
from app.models.decoder import DecoderLayer, DecoderStack
from app.models.gemma4.names import NAMES
from app.models.parts import Parts
from app.quant.placement import Placement


def build(config: ModelConfig, /, *, max_positions: int, placement: Placement) -> Decoder:
    """See :class:`app.models.architecture.BuildModel`."""
    parts = Parts(config, max_positions=max_positions, placement=placement)
    layers = [_layer(parts, layer) for layer in config.layers]
    return DecoderStack(parts, NAMES.checkpoint, layers, final_norm=parts.rms_norm(), layer_inputs=parts.layer_inputs())


def _layer(parts: Parts, config: LayerConfig) -> DecoderLayer:
    experts = config.mlp if isinstance(config.mlp, ExpertsConfig) else None
    return DecoderLayer(
        mixer_norm=parts.rms_norm(),
        mixer=parts.attention(config.mixer),
        mixer_post_norm=parts.rms_norm(),
        mlp_norm=parts.rms_norm() if experts is None else NoNorm(),
        mlp=parts.mlp(config.mlp) if experts is None else parts.experts_apart(experts),
        mlp_post_norm=parts.rms_norm(),
        own_input=parts.layer_input(),
        factor=parts.factor(),
    )
