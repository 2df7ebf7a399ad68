"""Pre-norm layers of attention beside Mamba-2, and of an MLP."""

from __future__ import annotations

from app.models.base import Decoder
from app.models.config import LayerConfig, ModelConfig
from app.models.decoder import DecoderLayer, DecoderStack, TwoMixersLayer
from app.models.falcon_h1.names import NAMES
from app.models.parts import Parts
from app.quant.placement import Placement


def build(config: ModelConfig, /, *, max_positions: int, placement: Placement) -> Decoder:
    """See :class:`app.models.architecture.BuildModel`."""
    parts = Parts(config, max_positions=max_positions, placement=placement)
    layers = [_layer(parts, layer) for layer in config.layers]
    return DecoderStack(parts, NAMES.checkpoint, layers, final_norm=parts.rms_norm())


def _layer(parts: Parts, config: LayerConfig) -> DecoderLayer:
    attention, mamba = config.mixers
    return TwoMixersLayer(
        mixer_norm=parts.rms_norm(),
        mixer=parts.attention(attention),
        beside=parts.mamba(mamba),
        mlp_norm=parts.rms_norm(),
        mlp=parts.mlp(config.mlp),
    )
