"""What the layers of a model are made to: one frozen record for each kind of sublayer (torch-free).

:mod:`app.models.config` puts them together to a model; families read them out of a ``config.json``.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from app.layers.rope_scaling import RopeScaling

Activation = Literal["silu", "gelu", "gelu_tanh", "relu2"]


class Rope(msgspec.Struct, frozen=True, kw_only=True):
    """Rotary positions of an attention layer's queries and keys."""

    theta: float
    """Base of the geometric series of frequencies."""
    width: int
    """Leading elements of each head that are rotated, an even number; the others are left alone."""
    scaling: RopeScaling | None = None


class AttentionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Attention over the keys and values of a sequence: causal in a decoder, both ways in an encoder."""

    kind: ClassVar[str] = "attention"

    num_heads: int
    """Query heads, a multiple of ``num_kv_heads``."""
    num_kv_heads: int
    head_dim: int
    scale: float
    """Factor on the dot products of queries and keys."""
    rope: Rope | None
    """None: queries and keys are not rotated."""
    window: int | None = None
    """Positions that a query sees, itself included; None for all."""
    softcap: float | None = None
    """Scores s become ``softcap * tanh(s / softcap)``."""
    sinks: bool = False
    """A learned logit for each head takes part in the softmax, without a value."""
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    """Each query and key head is RMS-normed before its rotation."""
    output_gate: bool = False
    """The result is multiplied by the sigmoid of a gate that is projected beside the queries."""


class DeltaConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Linear attention by the gated delta rule, its state a matrix for each value head."""

    kind: ClassVar[str] = "delta"

    num_k_heads: int
    num_v_heads: int
    """A multiple of ``num_k_heads``."""
    k_dim: int
    """Width of a key head."""
    v_dim: int
    """Width of a value head."""
    conv_width: int
    """Taps of the causal convolution ahead of the rule."""


class MlpConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A dense feed-forward sublayer."""

    kind: ClassVar[str] = "mlp"

    width: int
    """Features between its two products."""
    activation: Activation = "silu"
    gated: bool = True
    """``activation(gate(x)) * up(x)``; otherwise ``activation(up(x))``."""
    bias: bool = False


class ExpertsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A feed-forward sublayer of which each token is sent through a few experts."""

    kind: ClassVar[str] = "experts"

    count: int
    chosen: int
    """Experts of a token."""
    width: int
    """Of each expert, between its two products."""
    activation: Activation = "silu"
    normalise: bool = True
    """The weights of a token's experts sum to one."""
    shared_width: int | None = None
    """Width of an expert that every token goes through; None: there is none."""


MixerConfig = AttentionConfig | DeltaConfig
FeedForwardConfig = MlpConfig | ExpertsConfig
