"""GPT-NeoX: rotated parts of heads, and layers whose two parts read the stream side by side, biases everywhere.

Checkpoints keep queries, keys and values as one matrix, head by head.
"""

from __future__ import annotations

from app.layers.blocks import Mlp, SelfAttention
from app.models.base import Decoder
from app.models.config import LayerConfig, ModelConfig
from app.models.decoder import DecoderLayer, DecoderStack, ParallelLayer
from app.models.gpt_neox.names import NAMES
from app.models.parts import Parts
from app.models.projections import fuse, rename
from app.quant.destination import Destination
from app.quant.placement import Placement


class _Attention(SelfAttention):
    def destinations(self, prefix: str) -> dict[str, Destination]:
        """``query_key_value`` and ``dense`` below ``prefix``."""
        parts, qkv = super().destinations(prefix), ("q_proj", "k_proj", "v_proj")
        named = fuse(parts, prefix, qkv, "query_key_value", groups=self._num_heads)
        return rename(named, prefix, {"o_proj": "dense"})


class _Mlp(Mlp):
    def destinations(self, prefix: str) -> dict[str, Destination]:
        """``dense_h_to_4h`` and ``dense_4h_to_h`` below ``prefix``."""
        return rename(super().destinations(prefix), prefix, {"up_proj": "dense_h_to_4h", "down_proj": "dense_4h_to_h"})


def build(config: ModelConfig, /, *, max_positions: int, placement: Placement) -> Decoder:
    """See :class:`app.models.architecture.BuildModel`."""
    parts = Parts(config, max_positions=max_positions, placement=placement)
    layers = [_layer(parts, layer) for layer in config.layers]
    return DecoderStack(parts, NAMES.checkpoint, layers, final_norm=parts.layer_norm())


def _layer(parts: Parts, config: LayerConfig) -> DecoderLayer:
    kind = ParallelLayer if config.parallel else DecoderLayer
    return kind(
        mixer_norm=parts.layer_norm(),
        mixer=parts.attention(config.mixer, kind=_Attention),
        mlp_norm=parts.layer_norm(),
        mlp=parts.mlp(config.mlp, kind=_Mlp),
    )
