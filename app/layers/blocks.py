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
from app.kernels.types import Act, ActFormat, AttentionMetadata, LayerKVCache, StepArena
from app.layers.attention import Attention
from app.layers.config import AttentionConfig, MlpConfig
from app.layers.linear import Linear, Split
from app.layers.norm import RMSNorm
from app.quant.destination import Destination, Extent, Part
from app.quant.placement import Placement

LayerCache = Any
"""A layer's pages, of the kind that its mixer keeps: a :class:`LayerKVCache`, or a
:class:`~app.kernels.types.LayerState`."""


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
        """Of its buffers."""

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
    """[T, (H + 2G) * E]"""
    q: Tensor
    """[T, H * E]"""
    attended: Act
    """[T, H * E]"""


@dataclass(frozen=True, slots=True)
class AttentionLayout:
    """Layout of :class:`SelfAttention`."""

    width: int
    x_format: ActFormat
    qkv_size: int
    q_size: int
    attended_format: ActFormat
    dtype: torch.dtype

    def take(self, arena: StepArena) -> AttentionBuffers:
        """The buffers of a step."""
        return AttentionBuffers(
            x=arena.take_act(self.width, self.dtype, self.x_format),
            qkv=arena.take(self.qkv_size, self.dtype),
            q=arena.take(self.q_size, self.dtype),
            attended=arena.take_act(self.q_size, self.dtype, self.attended_format),
        )


class SelfAttention:
    """Grouped-query attention over pages of keys and values, between its projections.

    Args:
        width: D.
        rope_PE: table of :mod:`app.layers.rotary` of ``config.rope``; None for None.
        norms: of the query and the key heads; None for ``config.qk_norm`` False.

    Raises:
        ValueError: the config asks for what no kernel computes yet.
    """

    def __init__(
        self,
        config: AttentionConfig,
        width: int,
        *,
        rope_PE: Tensor | None,
        norms: tuple[RMSNorm, RMSNorm] | None,
        placement: Placement,
    ) -> None:
        if config.output_gate:
            raise ValueError("SelfAttention has no output gate")
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.qkv_proj = Linear(
            {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size},
            width,
            split=Split.OUTPUTS,
            bias=config.qkv_bias,
            placement=placement,
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
        )
        self.o_proj = Linear({"o_proj": width}, q_size, split=Split.INPUTS, bias=config.o_bias, placement=placement)
        self.layout = AttentionLayout(
            width=width,
            x_format=self.qkv_proj.act_format,
            qkv_size=self.qkv_proj.out_features,
            q_size=self.o_proj.in_features,
            attended_format=self.o_proj.act_format,
            dtype=placement.dtype,
        )

    def __call__(
        self, buffers: AttentionBuffers, out: Act, positions_T: Tensor, cache: LayerKVCache, meta: AttentionMetadata
    ) -> None:
        """``out`` [T, D] of ``buffers.x``; keys and values are written to ``cache``."""
        self.qkv_proj(buffers.x, Act(buffers.qkv))
        self.attention(buffers.qkv, positions_T, cache, meta, buffers.q, buffers.attended)
        self.o_proj(buffers.attended, out)

    def destinations(self, prefix: str) -> dict[str, Destination]:
        """``q_proj``, ``k_proj``, ``v_proj``, ``q_norm``, ``k_norm``, ``sinks`` and ``o_proj`` below ``prefix``."""
        named = self.qkv_proj.destinations(prefix)
        if self.q_norm is not None and self.k_norm is not None:
            named |= self.q_norm.destinations(f"{prefix}.q_norm")
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
        return MlpBuffers(
            x=arena.take_act(self.width, self.dtype, self.x_format),
            scratch=arena.take(self.scratch_width, self.dtype) if self.scratch_width else None,
            hidden=arena.take_act(self.hidden_size, self.dtype, self.hidden_format),
        )


class Mlp:
    """Two products with an activation between them, the first one gated or not.

    Args:
        width: D.

    Raises:
        ValueError: no kernel has the config's activation.
    """

    def __init__(self, config: MlpConfig, width: int, *, placement: Placement) -> None:
        inner, bias = config.width, config.bias
        parts = {"gate_proj": inner, "up_proj": inner} if config.gated else {"up_proj": inner}
        self.up_proj = Linear(
            parts,
            width,
            split=Split.OUTPUTS,
            bias=bias,
            placement=placement,
            activation=Activation(f"{config.activation}_mul" if config.gated else config.activation),
        )
        self.down_proj = Linear({"down_proj": width}, inner, split=Split.INPUTS, bias=bias, placement=placement)
        hidden_format = self.down_proj.act_format
        self.layout = MlpLayout(
            width=width,
            x_format=self.up_proj.act_format,
            scratch_width=self.up_proj.scratch_width(hidden_format),
            hidden_size=self.down_proj.in_features,
            hidden_format=hidden_format,
            dtype=placement.dtype,
        )

    def __call__(self, buffers: MlpBuffers, out: Act) -> None:
        """``out`` [T, D] of ``buffers.x``."""
        self.up_proj(buffers.x, buffers.hidden, scratch=buffers.scratch)
        self.down_proj(buffers.hidden, out)

    def destinations(self, prefix: str) -> dict[str, Destination]:
        """``gate_proj`` if there is one, ``up_proj`` and ``down_proj`` below ``prefix``."""
        return self.up_proj.destinations(prefix) | self.down_proj.destinations(prefix)
