"""Makes the parts that families put together to a model, each in the format and on the device of its placement."""

from __future__ import annotations

import torch
from torch import Tensor

from app.layers.blocks import FeedForward, Mixer, Mlp, SelfAttention
from app.layers.config import (
    AttentionConfig,
    DeltaConfig,
    ExpertsConfig,
    FeedForwardConfig,
    LatentConfig,
    MambaConfig,
    MixerConfig,
    MlpConfig,
    PositionScale,
    Rope,
    ShortConvConfig,
)
from app.layers.delta import GatedDelta
from app.layers.experts import Experts
from app.layers.experts_apart import ExpertsApart
from app.layers.latent_attention import LatentAttention
from app.layers.layer_inputs import LayerInput, LayerInputs
from app.layers.mamba import Mamba
from app.layers.norm import LayerNorm, RMSNorm
from app.layers.rotary import query_scales, rope_table
from app.layers.short_conv import ShortConv
from app.models.config import ModelConfig
from app.quant.placement import Placement


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
        self._query_scales: dict[PositionScale, Tensor] = {}

    def rms_norm(self, width: int | None = None, *, plus_one: bool = False) -> RMSNorm:
        """A norm of the stream, or of another width.

        Args:
            plus_one: checkpoints hold w where 1 + w is multiplied with.
        """
        width = self.config.hidden_size if width is None else width
        return RMSNorm(width, self.config.norm_eps, placement=self.placement, plus_one=plus_one)

    def layer_norm(self, *, bias: bool = True) -> LayerNorm:
        """A LayerNorm of the stream.

        Args:
            bias: as of :class:`~app.layers.norm.LayerNorm`.
        """
        return LayerNorm(self.config.hidden_size, self.config.norm_eps, placement=self.placement, bias=bias)

    def rope(self, rope: Rope | None) -> Tensor | None:
        """As :meth:`angles`; None for None."""
        return None if rope is None else self.angles(rope)

    def angles(self, rope: Rope) -> Tensor:
        """The table of a rope's angles, which layers of the same rope share."""
        table = self._ropes.get(rope)
        if table is None:
            table = self._ropes[rope] = rope_table(rope, self._max_positions, self.placement.device)
        return table

    def query_scales(self, scale: PositionScale | None) -> Tensor | None:
        """The factors on queries by position, likewise."""
        if scale is None:
            return None
        table = self._query_scales.get(scale)
        if table is None:
            table = self._query_scales[scale] = query_scales(scale, self._max_positions, self.placement.device)
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
        norms: tuple[RMSNorm, RMSNorm | None] | None = None
        if config.qk_norm:
            heads = (config.num_heads, config.num_kv_heads) if config.qk_norm_whole else (1, 1)
            q_norm, k_norm = (self.rms_norm(count * config.head_dim, plus_one=plus_one) for count in heads)
            norms = (q_norm, k_norm if config.pages_of is None else None)
        return kind(
            config,
            self.config.hidden_size,
            rope_PE=self.rope(config.rope),
            norms=norms,
            q_scale_P=self.query_scales(config.query_scale),
            placement=self.placement,
        )

    def latent_attention(
        self, config: MixerConfig, *, kind: type[LatentAttention] = LatentAttention
    ) -> LatentAttention:
        """A sublayer of attention over latents.

        Args:
            kind: as of :meth:`attention`.

        Raises:
            TypeError: the config is of another kind of mixer.
        """
        if not isinstance(config, LatentConfig):
            raise TypeError(f"a mixer of kind {config.kind!r} does not attend to latents")
        rope_PR = self.angles(config.rope)
        return kind(config, self.config.hidden_size, rope_PR=rope_PR, placement=self.placement)

    def softmax_attention(self, config: MixerConfig) -> Mixer:
        """An attention sublayer of the config's kind, over keys and values or over latents."""
        return self.latent_attention(config) if isinstance(config, LatentConfig) else self.attention(config)

    def short_conv(self, config: MixerConfig) -> ShortConv:
        """A sublayer of a short convolution between gates.

        Raises:
            TypeError: the config is of another kind of mixer.
        """
        if not isinstance(config, ShortConvConfig):
            raise TypeError(f"a mixer of kind {config.kind!r} is no short convolution")
        return ShortConv(config, self.config.hidden_size, placement=self.placement)

    def delta(self, config: MixerConfig, *, interleaved: bool) -> GatedDelta:
        """A sublayer of the gated delta rule.

        Args:
            interleaved: as of :class:`~app.layers.delta.GatedDelta`.

        Raises:
            TypeError: the config is of another kind of mixer.
        """
        if not isinstance(config, DeltaConfig):
            raise TypeError(f"a mixer of kind {config.kind!r} is no gated delta rule")
        width, eps = self.config.hidden_size, self.config.norm_eps
        return GatedDelta(width, config, eps, interleaved=interleaved, placement=self.placement)

    def mamba(self, config: MixerConfig) -> Mamba:
        """A Mamba-2 sublayer.

        Raises:
            TypeError: the config is of another kind of mixer.
        """
        if not isinstance(config, MambaConfig):
            raise TypeError(f"a mixer of kind {config.kind!r} is no Mamba-2")
        return Mamba(self.config.hidden_size, config, self.config.norm_eps, placement=self.placement)

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

    def experts(self, config: FeedForwardConfig, *, kind: type[Experts] = Experts) -> Experts:
        """A mixture of experts.

        Args:
            kind: as of :meth:`attention`.

        Raises:
            TypeError: the config is of another kind.
        """
        if not isinstance(config, ExpertsConfig):
            raise TypeError(f"a feed-forward part of kind {config.kind!r} is no mixture of experts")
        return kind(config, self.config.hidden_size, placement=self.placement)

    def experts_apart(self, config: ExpertsConfig) -> ExpertsApart:
        """A mixture of experts beside a shared one, each with norms of its own."""
        width, eps = self.config.hidden_size, self.config.norm_eps
        return ExpertsApart(config, width, eps, placement=self.placement)

    def feed_forward(self, config: FeedForwardConfig) -> FeedForward:
        """A feed-forward sublayer of the config's kind."""
        return self.experts(config) if isinstance(config, ExpertsConfig) else self.mlp(config)

    def layer_inputs(self) -> LayerInputs | None:
        """What makes the layers' own inputs, of a model whose layers have any."""
        config = self.config.layer_inputs
        if config is None:
            return None
        norm = self.rms_norm(config.width)
        return LayerInputs(config, self.config.hidden_size, self.config.num_layers, norm=norm, placement=self.placement)

    def layer_input(self) -> LayerInput | None:
        """A layer's part of it, likewise."""
        config = self.config.layer_inputs
        if config is None:
            return None
        return LayerInput(config, self.config.hidden_size, post_norm=self.rms_norm(), placement=self.placement)

    def factor(self) -> Tensor:
        """A learned factor [1], fp32 in every format."""
        return torch.empty(1, dtype=torch.float32, device=self.placement.device)
