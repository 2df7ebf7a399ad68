"""StarCoder2: pre-norm layers of LayerNorms, grouped-query attention and an MLP without a gate."""

from __future__ import annotations

from app.layers.blocks import Mlp
from app.models.base import Decoder
from app.models.config import LayerConfig, ModelConfig
from app.models.decoder import DecoderLayer, DecoderStack
from app.models.parts import Parts
from app.models.projections import rename
from app.models.starcoder2.names import NAMES
from app.quant.destination import Destination
from app.quant.placement import Placement


class _Mlp(Mlp):
    def destinations(self, prefix: str) -> dict[str, Destination]:
        """``c_fc`` and ``c_proj`` below ``prefix``."""
        return rename(super().destinations(prefix), prefix, {"up_proj": "c_fc", "down_proj": "c_proj"})


def build(config: ModelConfig, /, *, max_positions: int, placement: Placement) -> Decoder:
    """See :class:`app.models.architecture.BuildModel`."""
    parts = Parts(config, max_positions=max_positions, placement=placement)
    layers = [_layer(parts, layer) for layer in config.layers]
    return DecoderStack(parts, NAMES.checkpoint, layers, final_norm=parts.layer_norm())


def _layer(parts: Parts, config: LayerConfig) -> DecoderLayer:
    return DecoderLayer(
        mixer_norm=parts.layer_norm(),
        mixer=parts.attention(config.mixer),
        mlp_norm=parts.layer_norm(),
        mlp=parts.mlp(config.mlp, kind=_Mlp),
    )
