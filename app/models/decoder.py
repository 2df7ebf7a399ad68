"""The stack that decoders share; :mod:`app.models.parts` makes what a family puts into it.

Token embeddings (and learned positions) begin a residual stream; every layer adds to it what its mixer and then its
feed-forward part make of the normed stream; the last norm and the output head make logits of it. A family says which
norms and sublayers, and which layers add both parts at once; nothing here computes.

T tokens of a step, L rows of logits, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from torch import Tensor

from app.kernels.types import Act, AttentionMetadata, StepArena
from app.layers.blocks import FeedForward, LayerCache, Layout, Mixer, Mlp, MlpBuffers, Sublayer
from app.layers.embedding import Embedding, LMHead
from app.layers.layer_inputs import LayerInput, LayerInputs
from app.layers.mamba import Mamba
from app.layers.norm import NoNorm, Norm, RMSNorm
from app.models.names import DecoderNames
from app.models.parts import Parts
from app.quant.destination import Destination

_AS_IT_IS: Final = NoNorm()


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLayer:
    """One layer, each part after a norm of its own.

    Raises:
        ValueError: there is a factor, and no norm behind the last part.
    """

    mixer_norm: Norm
    mixer: Mixer
    mlp_norm: Norm
    mlp: FeedForward
    mixer_post_norm: RMSNorm | None = None
    """Norms what the mixer made before it is added to the stream."""
    mlp_post_norm: RMSNorm | None = None
    """Norms what the feed-forward part made before it is added to the stream."""
    own_input: LayerInput | None = None
    """Adds to the stream behind both what it makes of the layer's own input."""
    factor: Tensor | None = None
    """[1] fp32, on the stream behind all of them."""

    def __post_init__(self) -> None:
        if self.factor is not None and self.own_input is None and self.mlp_post_norm is None:
            raise ValueError("a factor on the stream goes with a norm behind the layer's last part")

    @property
    def parts(self) -> tuple[Sublayer, ...]:
        """Sublayers of the layer: its last mixer, its first one, its feed-forward part and, where it has an input of
        its own, that of this."""
        parts = (self.mixers[-1], self.mixer, self.mlp)
        return parts if self.own_input is None else (*parts, self.own_input)

    @property
    def mixers(self) -> tuple[Mixer, ...]:
        """Mixers of the layer, in the order of its config."""
        return (self.mixer,)

    def destinations(self, prefix: str, names: DecoderNames, mixers: Sequence[str]) -> dict[str, Destination]:
        """Checkpoint names of the layer's weights and where each goes.

        Args:
            prefix: of the layer.
            mixers: what checkpoints call its mixers.
        """
        named = self.mixer_norm.destinations(f"{prefix}.{names.mixer_norm}")
        for name, mixer in zip(mixers, self.mixers, strict=True):
            named |= mixer.destinations(f"{prefix}.{name}")
        if self.mixer_post_norm is not None:
            named |= self.mixer_post_norm.destinations(f"{prefix}.{names.mixer_post_norm}")
        if self.mlp_norm is not self.mixer_norm:
            named |= self.mlp_norm.destinations(f"{prefix}.{names.mlp_norm}")
        named |= self.mlp.destinations(f"{prefix}.{names.mlp}")
        if self.mlp_post_norm is not None:
            named |= self.mlp_post_norm.destinations(f"{prefix}.{names.mlp_post_norm}")
        if self.own_input is not None:
            named |= self.own_input.destinations(prefix)
        if self.factor is not None:
            named[f"{prefix}.{names.factor}"] = self.factor
        return named


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelLayer(DecoderLayer):
    """A layer whose two parts read one stream and are added to it together, as GPT-J's.

    With one norm for both, ``mlp_norm`` is the mixer's.

    Raises:
        ValueError: a part has a norm behind it.
    """

    mlp: Mlp

    def __post_init__(self) -> None:
        if self.mixer_post_norm is not None or self.mlp_post_norm is not None:
            raise ValueError("a parallel layer has no norm behind its parts")
        if self.own_input is not None or self.factor is not None:
            raise ValueError("a parallel layer has neither an input of its own nor a factor")


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoMixersLayer(DecoderLayer):
    """A layer with another mixer beside the first, of one norm: what both make is added to the stream together."""

    beside: Mamba

    @property
    def mixers(self) -> tuple[Mixer, ...]:
        """Both mixers, in the order of the layer's config."""
        return (self.mixer, self.beside)


class DecoderStack:
    """A decoder with its output head; weights are uninitialised until :meth:`destinations` are filled.

    Args:
        parts: what the layers were made with.
        names: what checkpoints call its modules.
        layer_inputs: makes what layers with an ``own_input`` read; None: there are none.
    """

    def __init__(
        self,
        parts: Parts,
        names: DecoderNames,
        layers: Sequence[DecoderLayer],
        *,
        final_norm: Norm,
        layer_inputs: LayerInputs | None = None,
    ) -> None:
        config, placement = parts.config, parts.placement
        self._config, self._names, self._dtype = config, names, placement.dtype
        self.embedding = Embedding(
            config.vocab_size,
            config.hidden_size,
            placement=placement,
            scale=config.embedding_scale,
            positions=config.positions,
        )
        self.layers = list(layers)
        self.layer_inputs = layer_inputs
        self.final_norm = final_norm
        tied = self.embedding if config.tie_word_embeddings else None
        self.lm_head = LMHead(
            config.vocab_size,
            config.hidden_size,
            placement=placement,
            tied=tied,
            scale=config.logit_scale,
            softcap=config.logit_softcap,
        )
        layouts: dict[Layout, int] = {}
        self._buffers_of = [
            tuple(layouts.setdefault(part.layout, len(layouts)) for part in layer.parts) for layer in self.layers
        ]
        """Indices in :attr:`_layouts` of the parts of each layer."""
        self._layouts = tuple(layouts)
        self._twins = self._find_twins()
        self._stored_otherwise = frozenset(name for others in self._twins.values() for name in others)
        self._unread = tuple(self._find_unread())

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
        own_inputs: list[Tensor] = []
        if self.layer_inputs is not None:
            own_inputs = self.layer_inputs(token_ids_T, positions_T, stream.residual, arena)
        delta = Act(stream.delta)
        kept = zip(caches, metas, strict=True)
        for index, (layer, places) in enumerate(zip(self.layers, self._buffers_of, strict=True)):
            last, mixer, mlp, *own = places
            buffers, (cache, meta) = stream.buffers[mixer], next(kept)
            stream.norm(layer.mixer_norm, buffers.x)
            if isinstance(layer, ParallelLayer):
                beside = stream.beside(layer, buffers.x, stream.buffers[mlp])
                layer.mixer(buffers, delta, positions_T, cache, meta)
                layer.mlp(beside, delta, add=True)
                stream.add(None)
                continue
            layer.mixer(buffers, delta, positions_T, cache, meta)
            if isinstance(layer, TwoMixersLayer):
                beside = replace(stream.buffers[last], x=buffers.x)
                layer.beside(beside, delta, positions_T, *next(kept), add=True)
            stream.add(layer.mixer_post_norm)
            buffers = stream.buffers[mlp]
            stream.norm(layer.mlp_norm, buffers.x)
            layer.mlp(buffers, delta)
            stream.add(layer.mlp_post_norm)
            if layer.own_input is not None:
                buffers = stream.buffers[own[0]]
                stream.norm(_AS_IT_IS, buffers.x)
                layer.own_input(buffers, own_inputs[index], delta)
                stream.add(layer.own_input.post_norm)
            stream.factor = layer.factor
        stream.norm(self.final_norm, Act(stream.final))
        return stream.final

    def reserve(self, arena: StepArena) -> None:
        """See :meth:`app.models.base.Decoder.reserve`."""
        self._take(arena)
        if self.layer_inputs is not None:
            self.layer_inputs.reserve(arena)
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
        if self.layer_inputs is not None:
            named |= self.layer_inputs.destinations(names.embedding.rpartition(".")[0])
        for index, (layer, config) in enumerate(zip(self.layers, self._config.layers, strict=True)):
            mixers = [names.mixers[mixer.kind] for mixer in config.mixers]
            named |= layer.destinations(f"{names.layers}.{index}", names, mixers)
        named |= self.final_norm.destinations(names.final_norm)
        if not tied:
            named[names.head_weight] = self.lm_head.destination()
        return named

    def ignores(self, name: str, /) -> bool:
        """Whether a checkpoint may hold ``name`` although :meth:`destinations` does not."""
        names = self._names
        if names.drafts_behind and name.startswith(f"{names.layers}.{len(self.layers)}."):
            return True
        if name.startswith(self._unread):
            return True
        return name in self._stored_otherwise or name.endswith(names.computed) or name.startswith(names.beside)

    def twins(self) -> dict[str, list[str]]:
        """See :meth:`app.models.base.Model.twins`."""
        return self._twins

    def _find_unread(self) -> Iterator[str]:
        """Beginnings of the names of keys and values that layers would make if they did not attend over others'."""
        names = self._names
        for index, layer in enumerate(self._config.layers):
            if getattr(layer.mixer, "pages_of", None) is None:
                continue
            mixer = f"{names.layers}.{index}.{names.mixers[layer.mixer.kind]}"
            for module in ("k_proj", "v_proj", "k_norm", "v_norm"):
                yield f"{mixer}.{module}."
                if names.base:
                    yield f"{names.other_base}{mixer.removeprefix(names.base)}.{module}."

    def _find_twins(self) -> dict[str, list[str]]:
        names = self._names
        twins: dict[str, list[str]] = {}
        if names.base:
            own = [name for name in self.destinations() if name.startswith(names.base)]
            twins = {name: [names.other_base + name.removeprefix(names.base)] for name in own}
        if self._config.tie_word_embeddings:
            twins.setdefault(names.embedding_weight, []).extend((names.head_weight, *names.other_head_weights))
        elif names.other_head:
            twins[names.head_weight] = list(names.other_head_weights)
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
    """Buffers of the sublayers, one of each layout."""
    final: Tensor
    """[T, D]"""
    begun: bool = False
    """Whether a sublayer's ``delta`` waits to be added."""
    post_norm: RMSNorm | None = None
    """Norms it first."""
    factor: Tensor | None = None
    """[1], on the sum."""

    def norm(self, norm: Norm, out: Act) -> None:
        """Adds what waits to the stream, and norms it."""
        if not self.begun:
            norm(self.residual, out)
        elif self.post_norm is None:
            norm(self.delta, out, residual_TD=self.residual)
        elif isinstance(norm, RMSNorm | NoNorm):
            norm.behind(self.post_norm, self.delta, out, self.residual, factor=self.factor)
        else:
            raise TypeError("only an RMSNorm, or none, stands behind the norm of a sublayer")

    def beside(self, layer: ParallelLayer, normed: Act, buffers: MlpBuffers) -> MlpBuffers:
        """Buffers of a parallel layer's feed-forward part, its input in them.

        Args:
            normed: the mixer's input, which is the part's too where they share a norm.
        """
        if layer.mlp_norm is layer.mixer_norm:
            return replace(buffers, x=normed)
        layer.mlp_norm(self.residual, buffers.x)
        return buffers

    def add(self, post_norm: RMSNorm | None) -> None:
        """Lets ``delta`` wait."""
        self.begun, self.post_norm, self.factor = True, post_norm, None
