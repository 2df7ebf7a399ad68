"""GLM-4: gated MLPs whose checkpoints keep gate and up projection as one, with or without norms behind sublayers."""

from __future__ import annotations

from app.layers.blocks import Mlp
from app.models.base import Decoder
from app.models.config import LayerConfig, ModelConfig
from app.models.decoder import DecoderLayer, DecoderStack
from app.models.glm4.config import SANDWICHED
from app.models.glm4.names import NAMES
from app.models.parts import Parts
from app.quant.destination import Destination, Interleaved
from app.quant.placement import Placement


class _Mlp(Mlp):
    def destinations(self, prefix: str) -> dict[str, Destination]:
        """``gate_up_proj`` and ``down_proj`` below ``prefix``."""
        parts = super().destinations(prefix)
        rows = [parts.pop(f"{prefix}.{part}_proj.weight") for part in ("gate", "up")]
        return {f"{prefix}.gate_up_proj.weight": Interleaved(rows), **parts}


def build(config: ModelConfig, /, *, max_positions: int, placement: Placement) -> Decoder:
    """See :class:`app.models.architecture.BuildModel`."""
    parts = Parts(config, max_positions=max_positions, placement=placement)
    layers = [_layer(parts, layer) for layer in config.layers]
    return DecoderStack(parts, NAMES.checkpoint, layers, final_norm=parts.rms_norm())


def _layer(parts: Parts, config: LayerConfig) -> DecoderLayer:
    sandwiched = parts.config.architecture == SANDWICHED
    return DecoderLayer(
        mixer_norm=parts.rms_norm(),
        mixer=parts.attention(config.mixer),
        mixer_post_norm=parts.rms_norm() if sandwiched else None,
        mlp_norm=parts.rms_norm(),
        mlp=parts.mlp(config.mlp, kind=_Mlp),
        mlp_post_norm=parts.rms_norm() if sandwiched else None,
    )
