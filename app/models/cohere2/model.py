"""Cohere: a layer's attention and gated MLP read one LayerNorm without a bias, and are added to the stream together."""

from __future__ import annotations

from app.models.base import Decoder
from app.models.cohere2.names import NAMES
from app.models.config import LayerConfig, ModelConfig
from app.models.decoder import DecoderStack, ParallelLayer
from app.models.parts import Parts
from app.quant.placement import Placement


def build(config: ModelConfig, /, *, max_positions: int, placement: Placement) -> Decoder:
    """See :class:`app.models.architecture.BuildModel`."""
    parts = Parts(config, max_positions=max_positions, placement=placement)
    layers = [_layer(parts, layer) for layer in config.layers]
    return DecoderStack(parts, NAMES.checkpoint, layers, final_norm=parts.layer_norm(bias=False))


def _layer(parts: Parts, config: LayerConfig) -> ParallelLayer:
    norm = parts.layer_norm(bias=False)
    return ParallelLayer(mixer_norm=norm, mixer=parts.attention(config.mixer), mlp_norm=norm, mlp=parts.mlp(config.mlp))
