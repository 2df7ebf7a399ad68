"""Gated short convolution, what most layers of LFM2 mix tokens by (Liquid AI 2025, arXiv:2511.23404).

T tokens of a step, D model width, C channels of the convolution, K its taps. The ranks of a tensor-parallel model share
out the channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from app.kernels.gated_conv import gated_conv
from app.kernels.types import Act, ActFormat, AttentionMetadata, LayerState, StepArena
from app.layers.config import ShortConvConfig
from app.layers.linear import Linear, Split, rank_share
from app.quant.destination import Destination, Interleaved, View
from app.quant.placement import Placement

_PARTS = ("in_gate", "out_gate", "x")
"""What ``in_proj`` makes, in the checkpoint's order."""


@dataclass(frozen=True, slots=True)
class ShortConvBuffers:
    """A step's buffers of :class:`ShortConv`."""

    x: Act
    """[T, D]"""
    projected: Tensor
    """[T, 3C]: the gate of the convolution's inputs, that of its outputs, and the inputs."""
    mixed: Act
    """[T, C]"""


@dataclass(frozen=True, slots=True)
class ShortConvLayout:
    """Layout of :class:`ShortConv`."""

    width: int
    x_format: ActFormat
    channels: int
    mixed_format: ActFormat
    dtype: torch.dtype

    def take(self, arena: StepArena) -> ShortConvBuffers:
        """The buffers of a step."""
        return ShortConvBuffers(
            x=arena.take_act(self.width, self.dtype, self.x_format),
            projected=arena.take(3 * self.channels, self.dtype),
            mixed=arena.take_act(self.channels, self.dtype, self.mixed_format),
        )


class ShortConv:
    """A causal convolution of a few taps between two gates, between its projections.

    Args:
        width: D.
    """

    def __init__(self, config: ShortConvConfig, width: int, *, placement: Placement) -> None:
        self._ranks = placement.ranks
        parts = dict.fromkeys(_PARTS, config.channels)
        self.in_proj = Linear(parts, width, split=Split.OUTPUTS, bias=config.bias, placement=placement)
        self.out_proj = Linear(
            {"out_proj": width}, config.channels, split=Split.INPUTS, bias=config.bias, placement=placement
        )
        channels, device = self.out_proj.in_features, placement.device
        self.weight_KC = torch.empty(config.conv_width, channels, dtype=torch.float32, device=device)
        self.bias_C: Tensor | None = None
        if config.bias:
            self.bias_C = torch.empty(channels, dtype=torch.float32, device=device)
        self.layout = ShortConvLayout(
            width=width,
            x_format=self.in_proj.act_format,
            channels=channels,
            mixed_format=self.out_proj.act_format,
            dtype=placement.dtype,
        )

    def __call__(
        self, buffers: ShortConvBuffers, out: Act, _positions_T: Tensor, state: LayerState, meta: AttentionMetadata
    ) -> None:
        """``out`` [T, D] of ``buffers.x``; ``meta`` of the state's group. The rows' states are left in ``state``."""
        self.in_proj(buffers.x, Act(buffers.projected))
        gated_conv(buffers.projected, self.weight_KC, state, meta, buffers.mixed, bias_C=self.bias_C)
        self.out_proj(buffers.mixed, out)

    def destinations(self, prefix: str) -> dict[str, Destination]:
        """``in_proj``, ``conv`` and ``out_proj`` below ``prefix``."""
        parts = self.in_proj.destinations(prefix)
        taps = View(self.weight_KC, self.weight_KC.t().unsqueeze(1))  # [C, 1, K]
        named: dict[str, Destination] = {
            f"{prefix}.in_proj.weight": Interleaved([parts[f"{prefix}.{part}.weight"] for part in _PARTS]),
            f"{prefix}.conv.weight": rank_share(taps, 0, self._ranks),
        }
        if self.bias_C is not None:
            named[f"{prefix}.in_proj.bias"] = Interleaved([parts[f"{prefix}.{part}.bias"] for part in _PARTS])
            named[f"{prefix}.conv.bias"] = rank_share(self.bias_C, 0, self._ranks)
        return named | self.out_proj.destinations(prefix)
