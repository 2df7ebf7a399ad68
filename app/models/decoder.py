"""The stack that decoders share, and the parts that a family puts into it.

Token embeddings (and learned positions) begin a residual stream; every layer adds to it what its mixer and then its
feed-forward part make of the normed stream; the last norm and the output head make logits of it. A family says which
norms and sublayers; nothing here computes.

T tokens of a step, L rows of logits, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from app.kernels.types import Act, AttentionMetadata, StepArena
from app.layers.blocks import FeedForward, LayerCache, Layout, Mixer, Mlp, SelfAttention
from app.layers.config import AttentionConfig, ExpertsConfig, FeedForwardConfig, MixerConfig, MlpConfig, Rope
from app.layers.embedding import Embedding, LMHead
from app.layers.experts import Experts
from app.layers.norm import LayerNorm, Norm, RMSNorm
from app.layers.rotary import rope_table
from app.models.config import ModelConfig
from app.models.names import DecoderNames
from app.quant.destination import Destination
from app.quant.placement import Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLayer:
    """One layer, each part after a norm of its own."""

    mixer_norm: Norm
    mixer: Mixer
    mlp_norm: Norm
    mlp: FeedForward
    mixer_post_norm: RMSNorm | None = None
    """Norms what the mixer made before it is added to the stream."""
    mlp_post_norm: RMSNorm | None = None
    """Likewise of the feed-forward part."""

    def destinations(self, prefix: str, names: DecoderNames, mixer: str) -> dict[str, Destination]:
        """Checkpoint names of the layer's weights and where each goes.

        Args:
            prefix: of the layer.
            mixer: what checkpoints call its mixer.
        """
        named = self.mixer_norm.destinations(f"{prefix}.{names.mixer_norm}")
        named |= self.mixer.destinations(f"{prefix}.{mixer}")
        if self.mixer_post_norm is not None:
            named |= self.mixer_post_norm.destinations(f"{prefix}.{names.mixer_post_norm}")
        named |= self.mlp_norm.destinations(f"{prefix}.{names.mlp_norm}")
        named |= self.mlp.destinations(f"{prefix}.{names.mlp}")
        if self.mlp_post_norm is not None:
            named |= self.mlp_post_norm.destinations(f"{prefix}.{names.mlp_post_norm}")
        return named


class Parts:
    """Makes a model's parts, each where the placement says.

    Args:
        max_positions: positions from 0 that sequences will use; sizes the tables of rotary angles.
    """

    def __init__(self, config: ModelConfig, *, max_positions: int, placement: Placement) -> None:
        self.config = config
        self.placement = placement.for_model()
        self._max_positions = max_positions
        self._ropes: dict[Rope, Tensor] = {}

    def rms_norm(self, width: int | None = None, *, plus_one: bool = False) -> RMSNorm:
        """A norm of the stream, or of another width.

        Args:
            plus_one: checkpoints hold w where 1 + w is multiplied with.
        """
        width = self.config.hidden_size if width is None else width
        return RMSNorm(width, self.config.norm_eps, placement=self.placement, plus_one=plus_one)

    def layer_norm(self) -> LayerNorm:
        """A norm of the stream with a bias."""
        return LayerNorm(self.config.hidden_size, self.config.norm_eps, placement=self.placement)

    def rope(self, rope: Rope | None) -> Tensor | None:
        """The table of a rope's angles, which layers of the same rope share; None for None."""
        if rope is None:
            return None
        table = self._ropes.get(rope)
        if table is None:
            table = self._ropes[rope] = rope_table(rope, self._max_positions, self.placement.device)
        return table

    def attention(
        self, config: MixerConfig, *, plus_one: bool = False, kind: type[SelfAttention] = SelfAttention
    ) -> SelfAttention:
        """An attention sublayer.

        Args:
            plus_one: as of :meth:`rms_norm`, of the norms of its heads.
            kind: the class of a family whose checkpoints keep its tensors in another form.

        Raises:
            TypeError: the config is of another kind of mixer.
        """
        if not isinstance(config, AttentionConfig):
            raise TypeError(f"a mixer of kind {config.kind!r} is not attention")
        norms = None
        if config.qk_norm:
            norms = (
                self.rms_norm(config.head_dim, plus_one=plus_one),
                self.rms_norm(config.head_dim, plus_one=plus_one),
            )
        rope_PE = self.rope(config.rope)
        return kind(config, self.config.hidden_size, rope_PE=rope_PE, norms=norms, placement=self.placement)

    def mlp(self, config: FeedForwardConfig, *, kind: type[Mlp] = Mlp) -> Mlp:
        """A dense feed-forward sublayer.

        Args:
            kind: as of :meth:`attention`.

        Raises:
            TypeError: the config is of another kind.
        """
        if not isinstance(config, MlpConfig):
            raise TypeError(f"a feed-forward part of kind {config.kind!r} is not dense")
        return kind(config, self.config.hidden_size, placement=self.placement)

    def experts(self, config: FeedForwardConfig) -> Experts:
        """A mixture of experts.

        Raises:
            TypeError: the config is of another kind.
        """
        if not isinstance(config, ExpertsConfig):
            raise TypeError(f"a feed-forward part of kind {config.kind!r} is no mixture of experts")
        return Experts(config, self.config.hidden_size, placement=self.placement)

    def feed_forward(self, config: FeedForwardConfig) -> FeedForward:
        """A feed-forward sublayer of the config's kind."""
        return self.experts(config) if isinstance(config, ExpertsConfig) else self.mlp(config)


class DecoderStack:
    """A decoder with its output head; weights are uninitialised until :meth:`destinations` are filled.

    Args:
        parts: what the layers were made with.
        names: what checkpoints call its modules.

    Raises:
        ValueError: the config asks for what no kernel computes yet.
    """

    def __init__(self, parts: Parts, names: DecoderNames, layers: Sequence[DecoderLayer], *, final_norm: Norm) -> None:
        config, placement = parts.config, parts.placement
        if config.logit_softcap is not None:
            raise ValueError("DecoderStack has no softcap of logits")
        self._config, self._names, self._dtype = config, names, placement.dtype
        self.embedding = Embedding(
            config.vocab_size,
            config.hidden_size,
            placement=placement,
            scale=config.embedding_scale,
            positions=config.positions,
        )
        self.layers = list(layers)
        self.final_norm = final_norm
        tied = self.embedding if config.tie_word_embeddings else None
        self.lm_head = LMHead(config.vocab_size, config.hidden_size, placement=placement, tied=tied)
        layouts: dict[Layout, int] = {}
        self._buffers_of = [
            tuple(layouts.setdefault(part.layout, len(layouts)) for part in (layer.mixer, layer.mlp))
            for layer in self.layers
        ]
        """Of each layer, which of :attr:`_layouts` its two parts have."""
        self._layouts = tuple(layouts)
        self._twins = self._find_twins()
        self._stored_otherwise = frozenset(name for others in self._twins.values() for name in others)

    def forward(
        self,
        token_ids_T: Tensor,
        positions_T: Tensor,
        caches: Sequence[LayerCache],
        metas: Sequence[AttentionMetadata],
        arena: StepArena,
    ) -> Tensor:
        """See :meth:`app.models.base.Decoder.forward`."""
        stream = self._take(arena)
        self.embedding(token_ids_T, positions_T, stream.residual)
        delta = Act(stream.delta)
        for layer, (mixer, mlp), cache, meta in zip(self.layers, self._buffers_of, caches, metas, strict=True):
            buffers = stream.buffers[mixer]
            stream.norm(layer.mixer_norm, buffers.x)
            layer.mixer(buffers, delta, positions_T, cache, meta)
            stream.add(layer.mixer_post_norm)
            buffers = stream.buffers[mlp]
            stream.norm(layer.mlp_norm, buffers.x)
            layer.mlp(buffers, delta)
            stream.add(layer.mlp_post_norm)
        stream.norm(self.final_norm, Act(stream.final))
        return stream.final

    def reserve(self, arena: StepArena) -> None:
        """See :meth:`app.models.base.Decoder.reserve`."""
        self._take(arena)
        self.lm_head.reserve(arena, self._config.hidden_size, self._dtype)

    def logits(self, hidden_TD: Tensor, indices_L: Tensor, out_LV: Tensor, arena: StepArena) -> None:
        """See :meth:`app.models.base.Decoder.logits`."""
        self.lm_head(hidden_TD, indices_L, out_LV, arena)

    def destinations(self) -> dict[str, Destination]:
        """Every weight of the checkpoint by name, and where it goes."""
        names, tied = self._names, self._config.tie_word_embeddings
        named: dict[str, Destination] = {
            names.embedding_weight: self.lm_head.destination(self.embedding) if tied else self.embedding.destination(),
        }
        if self.embedding.position_table is not None:
            named[f"{names.positions}.weight"] = self.embedding.position_table
        for index, (layer, config) in enumerate(zip(self.layers, self._config.layers, strict=True)):
            named |= layer.destinations(f"{names.layers}.{index}", names, names.mixers[config.mixer.kind])
        named |= self.final_norm.destinations(names.final_norm)
        if not tied:
            named[names.head_weight] = self.lm_head.destination()
        return named

    def ignores(self, name: str, /) -> bool:
        """Whether a checkpoint may hold ``name`` although :meth:`destinations` does not."""
        names = self._names
        return name in self._stored_otherwise or name.endswith(names.computed) or name.startswith(names.beside)

    def twins(self) -> dict[str, list[str]]:
        """See :meth:`app.models.base.Model.twins`."""
        return self._twins

    def _find_twins(self) -> dict[str, list[str]]:
        names = self._names
        twins: dict[str, list[str]] = {}
        if names.base:
            own = [name for name in self.destinations() if name.startswith(names.base)]
            twins = {name: [names.other_base + name.removeprefix(names.base)] for name in own}
        if self._config.tie_word_embeddings:
            twins.setdefault(names.embedding_weight, []).append(names.head_weight)
        return twins

    def _take(self, arena: StepArena) -> _Stream:
        width, dtype = self._config.hidden_size, self._dtype
        return _Stream(
            residual=arena.take(width, dtype),
            delta=arena.take(width, dtype),
            buffers=[layout.take(arena) for layout in self._layouts],
            final=arena.take(width, dtype),
        )


@dataclass(slots=True)
class _Stream:
    """A step's residual stream and buffers."""

    residual: Tensor
    """[T, D]"""
    delta: Tensor
    """[T, D] what a sublayer makes."""
    buffers: list[Any]
    """Of the sublayers, one of each layout."""
    final: Tensor
    """[T, D]"""
    begun: bool = False
    """Whether a sublayer's ``delta`` waits to be added."""
    post_norm: RMSNorm | None = None
    """Norms it first."""

    def norm(self, norm: Norm, out: Act) -> None:
        """Adds what waits to the stream, and norms it."""
        if not self.begun:
            norm(self.residual, out)
        elif self.post_norm is None:
            norm(self.delta, out, residual_TD=self.residual)
        elif isinstance(norm, RMSNorm):
            norm.behind(self.post_norm, self.delta, out, self.residual)
        else:
            raise TypeError("only an RMSNorm stands behind the norm of a sublayer")

    def add(self, post_norm: RMSNorm | None) -> None:
        """Lets ``delta`` wait."""
        self.begun, self.post_norm = True, post_norm
