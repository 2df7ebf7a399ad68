"""Pre-norm layers of the gated delta rule or of gated attention, and of an MLP or experts; norms multiply by 1 + w."""

from __future__ import annotations

from app.layers.blocks import Mixer
from app.models.base import Decoder
from app.models.config import DeltaConfig, LayerConfig, ModelConfig
from app.models.decoder import DecoderLayer, DecoderStack
from app.models.parts import Parts
from app.models.qwen3_next.config import INTERLEAVED
from app.models.qwen3_next.names import NAMES
from app.quant.placement import Placement


def build(config: ModelConfig, /, *, max_positions: int, placement: Placement) -> Decoder:
    """See :class:`app.models.architecture.BuildModel`."""
    parts = Parts(config, max_positions=max_positions, placement=placement)
    layers = [_layer(parts, layer) for layer in config.layers]
    return DecoderStack(parts, NAMES.checkpoint, layers, final_norm=parts.rms_norm(plus_one=True))


def _layer(parts: Parts, config: LayerConfig) -> DecoderLayer:
    mixer: Mixer
    if isinstance(config.mixer, DeltaConfig):
        mixer = parts.delta(config.mixer, interleaved=parts.config.architecture == INTERLEAVED)
    else:
        mixer = parts.attention(config.mixer, plus_one=True)
    return DecoderLayer(
        mixer_norm=parts.rms_norm(plus_one=True),
        mixer=mixer,
        mlp_norm=parts.rms_norm(plus_one=True),
        mlp=parts.feed_forward(config.mlp),
    )
