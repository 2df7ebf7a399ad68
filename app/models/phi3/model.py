"""Phi-3: pre-norm layers of attention and a gated MLP, whose checkpoints keep what reads one input as one matrix."""

from __future__ import annotations

from app.layers.blocks import Mlp, SelfAttention
from app.models.base import Decoder
from app.models.config import LayerConfig, ModelConfig
from app.models.decoder import DecoderLayer, DecoderStack
from app.models.parts import Parts
from app.models.phi3.names import NAMES
from app.models.projections import fuse
from app.quant.destination import Destination
from app.quant.placement import Placement


class _Attention(SelfAttention):
    def destinations(self, prefix: str) -> dict[str, Destination]:
        """``qkv_proj`` and ``o_proj`` below ``prefix``."""
        return fuse(super().destinations(prefix), prefix, ("q_proj", "k_proj", "v_proj"), "qkv_proj")


class _Mlp(Mlp):
    def destinations(self, prefix: str) -> dict[str, Destination]:
        """``gate_up_proj`` and ``down_proj`` below ``prefix``."""
        return fuse(super().destinations(prefix), prefix, ("gate_proj", "up_proj"), "gate_up_proj")


def build(config: ModelConfig, /, *, max_positions: int, placement: Placement) -> Decoder:
    """See :class:`app.models.architecture.BuildModel`."""
    parts = Parts(config, max_positions=max_positions, placement=placement)
    layers = [_layer(parts, layer) for layer in config.layers]
    return DecoderStack(parts, NAMES.checkpoint, layers, final_norm=parts.rms_norm())


def _layer(parts: Parts, config: LayerConfig) -> DecoderLayer:
    return DecoderLayer(
        mixer_norm=parts.rms_norm(),
        mixer=parts.attention(config.mixer, kind=_Attention),
        mlp_norm=parts.rms_norm(),
        mlp=parts.mlp(config.mlp, kind=_Mlp),
    )
