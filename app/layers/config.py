"""What the layers of a model are made to: one frozen record for each kind of sublayer (torch-free).

:mod:`app.models.config` puts them together to a model; families read them out of a ``config.json``.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import msgspec

from app.layers.rope_scaling import RopeScaling

Activation = Literal["silu", "gelu", "gelu_tanh", "relu2"]
Scoring = Literal["softmax", "softmax chosen", "sigmoid"]


class Rope(msgspec.Struct, frozen=True, kw_only=True):
    """Rotary positions of an attention layer's queries and keys."""

    theta: float
    """Base of the geometric series of frequencies."""
    width: int
    """Leading elements of each head that are rotated, an even number; the others are left alone."""
    scaling: RopeScaling | None = None
    spread: int | None = None
    """Elements over which frequencies and pairs are laid out although ``width`` alone are rotated: element i, below
    ``width / 2``, pairs with i + ``spread / 2``. None: ``width``. (Gemma 4's *proportional* rotation.)"""
    interleaved: bool = False
    """Checkpoints have the two elements of a rotated pair side by side; they are put apart as rows are loaded."""


class PositionScale(msgspec.Struct, frozen=True, kw_only=True):
    """A query at position p counts ``1 + beta * ln(1 + floor(p / interval))``, as in Llama 4."""

    beta: float
    interval: int


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
    qk_norm_whole: bool = False
    """With ``qk_norm``: all query heads are normed as one vector, and all key heads."""
    value_norm: bool = False
    """Each value head is RMS-normed too, without a weight."""
    key_is_value: bool = False
    """Values are what keys are before norm and rotation: there is no projection of them."""
    pages_of: int | None = None
    """Index, among the model's mixers, of an earlier one over whose keys and values this one attends: it makes and
    keeps none. None: its own."""
    query_scale: PositionScale | None = None
    """Factor on the rotated queries by position; None for none."""
    output_gate: bool = False
    """The result is multiplied by the sigmoid of a gate that is projected beside the queries."""
    output_scale: float = 1.0
    """Factor on what is added to the residual stream."""


class LatentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Causal attention whose heads make keys and values of one latent a token, which alone is kept."""

    kind: ClassVar[str] = "latent"

    num_heads: int
    q_rank: int | None
    """Width between the two products that make queries; None: one product makes them."""
    kv_rank: int
    """Elements of a latent."""
    nope_dim: int
    """Elements of a query that are not rotated."""
    rope_dim: int
    """Elements behind them that are, and of the key beside each latent, which all heads share."""
    v_dim: int
    """Elements of a head's value."""
    scale: float
    """Factor on the dot products of queries and keys."""
    rope: Rope
    """Its width is ``rope_dim``."""
    interleaved: bool
    """Rotated pairs are neighbours, otherwise half of the rotated elements apart."""
    norm_eps: float
    """Epsilon of the norms of latents and of what lies between the queries' two products."""
    bias: bool = False
    """Whether the products that make latents, what lies between the queries' two, and the result have a bias."""
    output_scale: float = 1.0
    """Factor on what is added to the residual stream."""

    @property
    def width(self) -> int:
        """Elements that are kept of a token."""
        return self.kv_rank + self.rope_dim


class ShortConvConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A short causal convolution between two gates, its state the last inputs."""

    kind: ClassVar[str] = "conv"

    channels: int
    """Channels of the convolution, which the two gates have too."""
    conv_width: int
    """Taps of the convolution."""
    bias: bool = False
    """Whether the convolution and the products around it have biases."""


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


class MambaConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A Mamba-2 mixer: a selective scan behind a causal convolution, its state a matrix for each head.

    A token's input is added to that matrix along a vector B, and the matrix is read along a vector C.
    """

    kind: ClassVar[str] = "mamba"

    num_heads: int
    head_dim: int
    num_groups: int
    """Groups of neighbouring heads that share one B and one C, and whose columns are normed together; divides the
    heads."""
    state_dim: int
    """Elements of B and of C: rows of a head's state."""
    conv_width: int
    """Taps of the causal convolution."""
    conv_bias: bool = True
    in_bias: bool = False
    """Whether the projection that makes all inputs has a bias."""
    out_bias: bool = False
    """Whether the projection of the result has a bias."""
    norm: bool = True
    """Whether the gated result is RMS-normed, group by group."""
    step_limit: tuple[float, float] = (0.0, math.inf)
    """Least and greatest step of the scan."""
    input_scales: tuple[float, float, float, float, float] = (1.0, 1.0, 1.0, 1.0, 1.0)
    """Factors on the outputs of the first projection: gate, input of the scan, B, C, and steps."""
    output_scale: float = 1.0
    """Factor on what is added to the residual stream."""

    @property
    def inner(self) -> int:
        """Columns of all heads."""
        return self.num_heads * self.head_dim

    @property
    def channels(self) -> int:
        """Channels of the convolution."""
        return self.inner + 2 * self.num_groups * self.state_dim


class MlpConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A dense feed-forward sublayer."""

    kind: ClassVar[str] = "mlp"

    width: int
    """Features between its two products."""
    activation: Activation = "silu"
    gated: bool = True
    """``activation(gate(x)) * up(x)``; otherwise ``activation(up(x))``."""
    bias: bool = False
    gate_scale: float = 1.0
    """Factor on the gate ahead of its activation."""
    output_scale: float = 1.0
    """Factor on what is added to the residual stream."""


class ClampedSwiglu(msgspec.Struct, frozen=True, kw_only=True):
    """The gate of an expert, of its two projections g and u: ``(u + 1) * g * sigmoid(alpha * g)`` with g of at most
    ``limit`` and u between ``-limit`` and ``limit``."""

    alpha: float
    limit: float


class GroupsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Experts in groups of neighbours: those of a token are in the best groups alone."""

    count: int
    """Groups, of equal size."""
    chosen: int
    """Groups of a token."""
    best: int
    """A group is worth the sum of so many of its best experts, 1 or 2."""


class ExpertsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A feed-forward sublayer of which each token is sent through a few experts."""

    kind: ClassVar[str] = "experts"

    count: int
    chosen: int
    """Experts of a token."""
    width: int
    """Width of each expert between its two products."""
    activation: Activation | ClampedSwiglu = "silu"
    bias: bool = False
    """Whether each expert's products have a bias."""
    router_bias: bool = False
    scoring: Scoring = "softmax"
    """How the router's logits become scores: softmax over all experts, or over the chosen ones, or sigmoid."""
    normalise: bool = True
    """The weights of a token's experts are divided by their sum."""
    least_sum: float = 0.0
    """Least sum of weights to divide by; a smaller one counts as this."""
    sum_offset: float = 0.0
    """Number added to that sum."""
    scale: float = 1.0
    """Factor on the weights, behind all else."""
    correction: bool = False
    """A learned bias of each expert is added to its score to choose by, and does not count in its weight."""
    groups: GroupsConfig | None = None
    """None: all experts are one group."""
    shared_width: int | None = None
    """Width of an expert that every token goes through; None: there is none."""
    shared_gate: bool = False
    """What that one makes is multiplied by the sigmoid of a gate [1, D]."""
    apart: bool = False
    """The shared expert, the router and the others each norm the stream by themselves, both results are normed before
    they are added, and a learned factor of each expert is on its weight (:mod:`app.layers.experts_apart`)."""
    output_scale: float = 1.0
    """Factor on what is added to the residual stream."""


class LayerInputsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """An input of its own that every layer has of each token, beside the residual stream
    (:mod:`app.layers.layer_inputs`)."""

    vocab_size: int
    """Rows of the table that part of it comes from."""
    width: int
    """Elements of one layer's input of a token."""


MixerConfig = AttentionConfig | LatentConfig | DeltaConfig | MambaConfig | ShortConvConfig
FeedForwardConfig = MlpConfig | ExpertsConfig
