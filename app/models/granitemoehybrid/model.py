"""Pre-norm layers of Mamba-2 or attention, and of an MLP alone or experts beside it."""

from __future__ import annotations

from app.layers.blocks import FeedForward, Mixer, Mlp
from app.models.base import Decoder
from app.models.config import LayerConfig, MambaConfig, MlpConfig, ModelConfig
from app.models.decoder import DecoderLayer, DecoderStack
from app.models.granitemoehybrid.names import NAMES
from app.models.parts import Parts
from app.quant.destination import Destination
from app.quant.placement import Placement


def build(config: ModelConfig, /, *, max_positions: int, placement: Placement) -> Decoder:
    """See :class:`app.models.architecture.BuildModel`."""
    parts = Parts(config, max_positions=max_positions, placement=placement)
    layers = [_layer(parts, layer) for layer in config.layers]
    return DecoderStack(parts, NAMES.checkpoint, layers, final_norm=parts.rms_norm())


class _SharedAlone(Mlp):
    """An MLP that checkpoints keep as the expert which every token goes through, of no others."""

    def destinations(self, prefix: str) -> dict[str, Destination]:
        return super().destinations(f"{prefix}.shared_expert")


def _layer(parts: Parts, config: LayerConfig) -> DecoderLayer:
    recurrent, dense = isinstance(config.mixer, MambaConfig), isinstance(config.mlp, MlpConfig)
    mixer: Mixer = parts.mamba(config.mixer) if recurrent else parts.attention(config.mixer)
    mlp: FeedForward = parts.mlp(config.mlp, kind=_SharedAlone) if dense else parts.experts(config.mlp)
    return DecoderLayer(mixer_norm=parts.rms_norm(), mixer=mixer, mlp_norm=parts.rms_norm(), mlp=mlp)
