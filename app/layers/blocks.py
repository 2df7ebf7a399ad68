"""The sublayers that families share: what stands between two norms of a decoder's layer.

A sublayer reads its input from a buffer of its own and leaves what it adds to the residual stream in ``out``. Nothing
here computes: calls name buffers and call layers, each of which is one kernel or two. The ranks of a tensor-parallel
model share out heads and MLP width: H, G and I are one rank's.

T tokens of a step, D model width, H query heads, G key/value heads, E head width, I MLP width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from app.kernels.linear import Activation
from app.kernels.sigmoid_mul import sigmoid_mul
from app.kernels.types import Act, ActFormat, AttentionMetadata, LayerKVCache, StepArena
from app.layers.attention import Attention
from app.layers.config import AttentionConfig, MlpConfig
from app.layers.linear import Linear, Split
from app.layers.norm import RMSNorm
from app.quant.destination import Destination, Extent, Interleaved, Part, pairs_apart
from app.quant.placement import Placement

LayerCache = Any
"""A layer's pages, of the kind that its mixer keeps: a :class:`LayerKVCache`, a
:class:`~app.kernels.types.LayerLatents`, or a :class:`~app.kernels.types.LayerState`."""


class Buffers(Protocol):
    """What a sublayer takes from the step's arena."""

    @property
    def x(self) -> Act:
        """[T, D] its input, in the format that it wants."""


class Layout(Protocol):
    """Widths and formats of a sublayer's buffers; sublayers of equal layouts use the same buffers in turn."""

    def __hash__(self) -> int: ...

    def take(self, arena: StepArena) -> Any:
        """The :class:`Buffers` of a step."""


class Sublayer(Protocol):
    """What mixers and feed-forward parts have in common."""

    @property
    def layout(self) -> Layout:
        """Widths and formats of its buffers."""

    def destinations(self, prefix: str) -> dict[str, Destination]:
        """Checkpoint names below ``{prefix}.`` and where each tensor goes; always in the same order."""


class Mixer(Sublayer, Protocol):
    """Lets the tokens of a row see those before them."""

    def __call__(
        self, buffers: Any, out: Act, positions_T: Tensor, cache: LayerCache, meta: AttentionMetadata, /
    ) -> None:
        """``out`` [T, D] of ``buffers.x``; what later steps need is written to ``cache``."""


class FeedForward(Sublayer, Protocol):
    """Works on each token alone."""

    def __call__(self, buffers: Any, out: Act, /) -> None:
        """``out`` [T, D] of ``buffers.x``."""


@dataclass(frozen=True, slots=True)
class AttentionBuffers:
    """A step's buffers of :class:`SelfAttention`."""

    x: Act
    """[T, D]"""
    qkv: Tensor
    """[T, (H + 2G) * E], without keys or values that are not projected"""
    q: Tensor
    """[T, H * E]"""
    attended: Act
    """[T, H * E], in the format that the output projection wants."""
    gate: Tensor | None
    """[T, H * E] of an output gate."""
    ungated: Act
    """[T, H * E] what attention gives; without a gate that is :attr:`attended`."""


@dataclass(frozen=True, slots=True)
class AttentionLayout:
    """Layout of :class:`SelfAttention`."""

    width: int
    x_format: ActFormat
    qkv_size: int
    q_size: int
    attended_format: ActFormat
    output_gate: bool
    dtype: torch.dtype

    def take(self, arena: StepArena) -> AttentionBuffers:
        """The buffers of a step."""
        x = arena.take_act(self.width, self.dtype, self.x_format)
        qkv, q = arena.take(self.qkv_size, self.dtype), arena.take(self.q_size, self.dtype)
        attended = ungated = arena.take_act(self.q_size, self.dtype, self.attended_format)
        gate = None
        if self.output_gate:
            gate = arena.take(self.q_size, self.dtype)
            ungated = Act(arena.take(self.q_size, self.dtype))
        return AttentionBuffers(x=x, qkv=qkv, q=q, attended=attended, gate=gate, ungated=ungated)


class SelfAttention:
    """Grouped-query attention over pages of keys and values, between its projections.

    An output gate has its rows in ``q_proj``, each head's behind those of its query. Here it is a product of its own:
    what follows wants queries, keys and values side by side.

    Args:
        width: D.
        rope_PE: table of :mod:`app.layers.rotary` of ``config.rope``; None for None.
        norms: norms of the query and the key heads (None where there are no keys); None for ``config.qk_norm`` False.
        q_scale_P: table of :func:`~app.layers.rotary.query_scales` of ``config.query_scale``; None for None.

    Raises:
        ValueError: the config puts pairs of normed or gated heads apart.
    """

    def __init__(
        self,
        config: AttentionConfig,
        width: int,
        *,
        rope_PE: Tensor | None,
        norms: tuple[RMSNorm, RMSNorm | None] | None,
        q_scale_P: Tensor | None = None,
        placement: Placement,
    ) -> None:
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self._head_dim, self._pairs = config.head_dim, 0
        if config.rope is not None and config.rope.interleaved:
            if norms is not None or config.output_gate:
                raise ValueError("SelfAttention puts no pairs of normed or gated heads apart")
            self._pairs = config.rope.width
        parts = {"q_proj": q_size}
        if config.pages_of is None:
            parts |= {"k_proj": kv_size} if config.key_is_value else {"k_proj": kv_size, "v_proj": kv_size}
        self.qkv_proj = Linear(
            parts,
            width,
            split=Split.OUTPUTS,
            bias=config.qkv_bias,
            placement=placement,
        )
        self.gate_proj: Linear | None = None
        if config.output_gate:
            self.gate_proj = Linear(
                {"q_proj": q_size}, width, split=Split.OUTPUTS, bias=config.qkv_bias, placement=placement
            )
        self.q_norm: RMSNorm | None = None
        self.k_norm: RMSNorm | None = None
        if norms is not None:
            self.q_norm, self.k_norm = norms
        heads = config.num_heads // placement.ranks.size
        self._first_head, self._num_heads = placement.ranks.rank * heads, config.num_heads
        self.sinks_H: Tensor | None = None
        if config.sinks:
            self.sinks_H = torch.empty(heads, dtype=torch.float32, device=placement.device)
        self.attention = Attention(
            heads,
            config.head_dim,
            rope_PE,
            scale=config.scale,
            sliding_window=config.window,
            softcap=config.softcap,
            sinks_H=self.sinks_H,
            q_norm=self.q_norm,
            k_norm=self.k_norm,
            q_scale_P=q_scale_P,
            pair_distance=None if config.rope is None or config.rope.spread is None else config.rope.spread // 2,
            value_norm=config.value_norm,
            writes=config.pages_of is None,
        )
        self.o_proj = Linear(
            {"o_proj": width},
            q_size,
            split=Split.INPUTS,
            bias=config.o_bias,
            placement=placement,
            scale=config.output_scale,
        )
        self.layout = AttentionLayout(
            width=width,
            x_format=self.qkv_proj.act_format,
            qkv_size=self.qkv_proj.out_features,
            q_size=self.o_proj.in_features,
            attended_format=self.o_proj.act_format,
            output_gate=config.output_gate,
            dtype=placement.dtype,
        )

    def __call__(
        self, buffers: AttentionBuffers, out: Act, positions_T: Tensor, cache: LayerKVCache, meta: AttentionMetadata
    ) -> None:
        """``out`` [T, D] of ``buffers.x``; keys and values are written to ``cache``."""
        self.qkv_proj(buffers.x, Act(buffers.qkv))
        self.attention(buffers.qkv, positions_T, cache, meta, buffers.q, buffers.ungated)
        if self.gate_proj is not None and buffers.gate is not None:
            self.gate_proj(buffers.x, Act(buffers.gate))
            sigmoid_mul(buffers.ungated.values, buffers.gate, buffers.attended)
        self.o_proj(buffers.attended, out)

    def destinations(self, prefix: str) -> dict[str, Destination]:
        """``q_proj``, ``k_proj``, ``v_proj``, ``q_norm``, ``k_norm``, ``sinks`` and ``o_proj`` below ``prefix``."""
        named = self.qkv_proj.destinations(prefix)
        if self._pairs:
            for name, place in named.items():
                if not name.startswith(f"{prefix}.v_proj"):
                    named[name] = pairs_apart(place, self._head_dim, self._pairs)
        if self.gate_proj is not None:
            for name, gate in self.gate_proj.destinations(prefix).items():
                named[name] = Interleaved([named[name], gate], self._num_heads)
        if self.q_norm is not None:
            named |= self.q_norm.destinations(f"{prefix}.q_norm")
        if self.k_norm is not None:
            named |= self.k_norm.destinations(f"{prefix}.k_norm")
        if self.sinks_H is not None:
            extent = Extent(0, self._first_head, self._first_head + self.sinks_H.numel())
            whole = self.sinks_H.numel() == self._num_heads
            named[f"{prefix}.sinks"] = self.sinks_H if whole else Part(self.sinks_H, extent, self._num_heads)
        return named | self.o_proj.destinations(prefix)


@dataclass(frozen=True, slots=True)
class MlpBuffers:
    """A step's buffers of :class:`Mlp`."""

    x: Act
    """[T, D]"""
    scratch: Tensor | None
    """What the first product needs on the way to :attr:`hidden`."""
    hidden: Act
    """[T, I]"""


@dataclass(frozen=True, slots=True)
class MlpLayout:
    """Layout of :class:`Mlp`."""

    width: int
    x_format: ActFormat
    scratch_width: int
    hidden_size: int
    hidden_format: ActFormat
    dtype: torch.dtype

    def take(self, arena: StepArena) -> MlpBuffers:
        """The buffers of a step."""
        return self.take_behind(arena, arena.take_act(self.width, self.dtype, self.x_format))

    def take_behind(self, arena: StepArena, x: Act) -> MlpBuffers:
        """The buffers of a step whose input is there already."""
        return MlpBuffers(
            x=x,
            scratch=arena.take(self.scratch_width, self.dtype) if self.scratch_width else None,
            hidden=arena.take_act(self.hidden_size, self.dtype, self.hidden_format),
        )


class Mlp:
    """Two products with an activation between them, the first one gated or not.

    Args:
        width: D.
        sums: over the ranks that share the width; otherwise each has its part of the sum, for the caller.

    Raises:
        ValueError: no kernel has the config's activation.
    """

    def __init__(self, config: MlpConfig, width: int, *, placement: Placement, sums: bool = True) -> None:
        inner, bias = config.width, config.bias
        parts = {"gate_proj": inner, "up_proj": inner} if config.gated else {"up_proj": inner}
        self.up_proj = Linear(
            parts,
            width,
            split=Split.OUTPUTS,
            bias=bias,
            placement=placement,
            activation=Activation(f"{config.activation}_mul" if config.gated else config.activation),
            scales={"gate_proj": config.gate_scale},
        )
        self.down_proj = Linear(
            {"down_proj": width},
            inner,
            split=Split.INPUTS,
            bias=bias,
            placement=placement,
            scale=config.output_scale,
            sums=sums,
        )
        hidden_format = self.down_proj.act_format
        self.layout = MlpLayout(
            width=width,
            x_format=self.up_proj.act_format,
            scratch_width=self.up_proj.scratch_width(hidden_format),
            hidden_size=self.down_proj.in_features,
            hidden_format=hidden_format,
            dtype=placement.dtype,
        )

    def __call__(self, buffers: MlpBuffers, out: Act, *, add: bool = False) -> None:
        """``out`` [T, D] of ``buffers.x``.

        Args:
            add: to what is there.
        """
        self.up_proj(buffers.x, buffers.hidden, scratch=buffers.scratch)
        self.down_proj(buffers.hidden, out, add=add)

    def destinations(self, prefix: str) -> dict[str, Destination]:
        """``gate_proj`` if there is one, ``up_proj`` and ``down_proj`` below ``prefix``."""
        return self.up_proj.destinations(prefix) | self.down_proj.destinations(prefix)
