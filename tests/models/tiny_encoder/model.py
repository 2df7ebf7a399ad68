"""The encoder over shared blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from app.kernels.types import Act, PackedSequences, StepArena
from app.layers.blocks import Mlp
from app.layers.config import AttentionConfig
from app.layers.embedding import Embedding
from app.layers.encoder import PackedSelfAttention
from app.layers.norm import RMSNorm
from app.models.base import Encoder
from app.models.config import LayerConfig, ModelConfig
from app.models.parts import Parts
from app.quant.destination import Destination
from app.quant.placement import Placement


@dataclass(frozen=True)
class Layer:
    """Attention and MLP, each after a norm."""

    attn_norm: RMSNorm
    attn: PackedSelfAttention
    mlp_norm: RMSNorm
    mlp: Mlp


class TinyEncoder:
    """See :class:`app.models.base.Encoder`."""

    def __init__(self, config: ModelConfig, parts: Parts) -> None:
        placement = parts.placement
        self._width, self._dtype = config.hidden_size, placement.dtype
        self.embedding = Embedding(config.vocab_size, self._width, placement=placement, positions=config.positions)
        self.layers = [self._layer(parts, layer) for layer in config.layers]
        self.norm = parts.rms_norm()

    def _layer(self, parts: Parts, config: LayerConfig) -> Layer:
        assert isinstance(config.mixer, AttentionConfig)
        attention = PackedSelfAttention(config.mixer, self._width, placement=parts.placement)
        return Layer(parts.rms_norm(), attention, parts.rms_norm(), parts.mlp(config.mlp))

    def encode(self, token_ids_T: Tensor, positions_T: Tensor, sequences: PackedSequences, arena: StepArena) -> Tensor:
        residual, delta, final = (arena.take(self._width, self._dtype) for _ in range(3))
        attention, mlp = self.layers[0].attn.layout.take(arena), self.layers[0].mlp.layout.take(arena)
        self.embedding(token_ids_T, positions_T, residual)
        for index, layer in enumerate(self.layers):
            if index == 0:
                layer.attn_norm(residual, attention.x)
            else:
                layer.attn_norm(delta, attention.x, residual_TD=residual)
            layer.attn(attention, Act(delta), sequences)
            layer.mlp_norm(delta, mlp.x, residual_TD=residual)
            layer.mlp(mlp, Act(delta))
        self.norm(delta, Act(final), residual_TD=residual)
        return final

    def destinations(self) -> Mapping[str, Destination]:
        assert self.embedding.position_table is not None
        named: dict[str, Destination] = {
            "embed.weight": self.embedding.destination(),
            "positions.weight": self.embedding.position_table,
        }
        for index, layer in enumerate(self.layers):
            prefix = f"layers.{index}"
            named |= layer.attn_norm.destinations(f"{prefix}.attn_norm")
            named |= layer.attn.destinations(f"{prefix}.attn")
            named |= layer.mlp_norm.destinations(f"{prefix}.mlp_norm")
            named |= layer.mlp.destinations(f"{prefix}.mlp")
        return named | self.norm.destinations("norm")

    def ignores(self, name: str, /) -> bool:
        return False

    def twins(self) -> Mapping[str, Sequence[str]]:
        return {}


def build_encoder(config: ModelConfig, /, *, max_positions: int, placement: Placement) -> Encoder:
    """See :class:`app.models.architecture.BuildEncoder`."""
    return TinyEncoder(config, Parts(config, max_positions=max_positions, placement=placement))
