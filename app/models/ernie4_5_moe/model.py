"""Layers as most decoders have them; checkpoints keep the correction of the choice beside the router, as a row."""

from __future__ import annotations

from app.layers.experts import Experts
from app.models.base import Decoder
from app.models.config import ExpertsConfig, LayerConfig, ModelConfig
from app.models.decoder import DecoderLayer, DecoderStack
from app.models.ernie4_5_moe.names import NAMES
from app.models.parts import Parts
from app.quant.destination import Destination, OneRow
from app.quant.placement import Placement


class _Experts(Experts):
    def destinations(self, prefix: str) -> dict[str, Destination]:
        """As of all, but ``moe_statics.e_score_correction_bias`` below ``prefix``."""
        named = super().destinations(prefix)
        correction = named.pop(f"{prefix}.gate.e_score_correction_bias")
        return named | {f"{prefix}.moe_statics.e_score_correction_bias": OneRow(correction)}


def build(config: ModelConfig, /, *, max_positions: int, placement: Placement) -> Decoder:
    """See :class:`app.models.architecture.BuildModel`."""
    parts = Parts(config, max_positions=max_positions, placement=placement)
    layers = [_layer(parts, layer) for layer in config.layers]
    return DecoderStack(parts, NAMES.checkpoint, layers, final_norm=parts.rms_norm())


def _layer(parts: Parts, config: LayerConfig) -> DecoderLayer:
    sparse = isinstance(config.mlp, ExpertsConfig)
    return DecoderLayer(
        mixer_norm=parts.rms_norm(),
        mixer=parts.attention(config.mixer),
        mlp_norm=parts.rms_norm(),
        mlp=parts.experts(config.mlp, kind=_Experts) if sparse else parts.mlp(config.mlp),
    )
