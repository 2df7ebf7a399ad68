"""GPT-2: learned positions, and pre-norm layers of attention and an MLP without a gate, biases everywhere.

Checkpoints keep every matrix as [inputs, outputs], and queries, keys and values as one.
"""

from __future__ import annotations

from app.layers.blocks import Mlp, SelfAttention
from app.models.base import Decoder
from app.models.config import LayerConfig, ModelConfig
from app.models.decoder import DecoderLayer, DecoderStack
from app.models.gpt2.names import NAMES
from app.models.parts import Parts
from app.quant.destination import Destination, Interleaved, Transposed
from app.quant.placement import Placement


class _Attention(SelfAttention):
    def destinations(self, prefix: str) -> dict[str, Destination]:
        """``c_attn`` and ``c_proj`` below ``prefix``."""
        parts = super().destinations(prefix)
        weights, biases = ([parts[f"{prefix}.{part}_proj.{kind}"] for part in "qkv"] for kind in ("weight", "bias"))
        return {
            f"{prefix}.c_attn.weight": Transposed(Interleaved(weights)),
            f"{prefix}.c_attn.bias": Interleaved(biases),
            f"{prefix}.c_proj.weight": Transposed(parts[f"{prefix}.o_proj.weight"]),
            f"{prefix}.c_proj.bias": parts[f"{prefix}.o_proj.bias"],
        }


class _Mlp(Mlp):
    def destinations(self, prefix: str) -> dict[str, Destination]:
        """``c_fc`` and ``c_proj`` below ``prefix``."""
        parts = super().destinations(prefix)
        return {
            f"{prefix}.c_fc.weight": Transposed(parts[f"{prefix}.up_proj.weight"]),
            f"{prefix}.c_fc.bias": parts[f"{prefix}.up_proj.bias"],
            f"{prefix}.c_proj.weight": Transposed(parts[f"{prefix}.down_proj.weight"]),
            f"{prefix}.c_proj.bias": parts[f"{prefix}.down_proj.bias"],
        }


def build(config: ModelConfig, /, *, max_positions: int, placement: Placement) -> Decoder:
    """See :class:`app.models.architecture.BuildModel`."""
    parts = Parts(config, max_positions=max_positions, placement=placement)
    layers = [_layer(parts, layer) for layer in config.layers]
    return DecoderStack(parts, NAMES.checkpoint, layers, final_norm=parts.layer_norm())


def _layer(parts: Parts, config: LayerConfig) -> DecoderLayer:
    return DecoderLayer(
        mixer_norm=parts.layer_norm(),
        mixer=parts.attention(config.mixer, kind=_Attention),
        mlp_norm=parts.layer_norm(),
        mlp=parts.mlp(config.mlp, kind=_Mlp),
    )
