"""Mamba-2 (Dao and Gu 2024, arXiv:2405.21060), the recurrent mixer of Granite 4 and Falcon-H1.

T tokens of a step, D model width, C channels of the convolution (inputs of all heads, then B and C of all groups), H
heads of E elements, I = H * E. One rank has all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from app.kernels.causal_conv import causal_conv
from app.kernels.selective_scan import selective_scan
from app.kernels.silu_gate import silu_gate
from app.kernels.types import Act, ActFormat, AttentionMetadata, LayerState, StepArena
from app.layers.config import MambaConfig
from app.layers.linear import Linear, Split
from app.quant.destination import Destination, Interleaved, View
from app.quant.placement import Placement


@dataclass(frozen=True, slots=True)
class MambaBuffers:
    """A step's buffers of :class:`Mamba`."""

    x: Act
    """[T, D]"""
    projected: Tensor
    """[T, I + C + H]: the output's gate, the convolution's inputs, and what becomes steps."""
    xbc: Tensor
    """[T, C]"""
    mixed: Tensor
    """[T, I]"""
    gated: Act
    """[T, I]"""


@dataclass(frozen=True, slots=True)
class MambaLayout:
    """Layout of :class:`Mamba`."""

    width: int
    x_format: ActFormat
    projected_size: int
    channels: int
    inner: int
    gated_format: ActFormat
    dtype: torch.dtype

    def take(self, arena: StepArena) -> MambaBuffers:
        """The buffers of a step."""
        return self.take_behind(arena, arena.take_act(self.width, self.dtype, self.x_format))

    def take_behind(self, arena: StepArena, x: Act) -> MambaBuffers:
        """The buffers of a step whose input is there already."""
        return MambaBuffers(
            x=x,
            projected=arena.take(self.projected_size, self.dtype),
            xbc=arena.take(self.channels, self.dtype),
            mixed=arena.take(self.inner, self.dtype),
            gated=arena.take_act(self.inner, self.dtype, self.gated_format),
        )


class Mamba:
    """The selective scan between its projections: convolution, scan, gate and norm.

    Args:
        width: D.
        eps: epsilon of the norm ahead of the output projection.

    Raises:
        ValueError: several ranks are to share it.
    """

    def __init__(self, width: int, config: MambaConfig, eps: float, *, placement: Placement) -> None:
        if placement.ranks.size > 1:
            raise ValueError("ranks do not share a Mamba-2 mixer")
        self._config, self._eps = config, eps
        of_groups = config.num_groups * config.state_dim
        parts = {"z": config.inner, "x": config.inner, "B": of_groups, "C": of_groups, "dt": config.num_heads}
        self.in_proj = Linear(
            parts,
            width,
            split=Split.OUTPUTS,
            bias=config.in_bias,
            placement=placement,
            scales=dict(zip(parts, config.input_scales, strict=True)),
        )
        self.out_proj = Linear(
            {"out_proj": width},
            config.inner,
            split=Split.INPUTS,
            bias=config.out_bias,
            placement=placement,
            scale=config.output_scale,
        )
        self._parts = tuple(parts)

        def new(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device=placement.device)

        self.conv_weight = new(config.conv_width, config.channels)
        self.conv_bias = new(config.channels) if config.conv_bias else None
        self.a_log, self.dt_bias, self.d = (new(config.num_heads) for _ in range(3))
        self.norm_weight = new(config.inner) if config.norm else None
        self.layout = MambaLayout(
            width=width,
            x_format=self.in_proj.act_format,
            projected_size=self.in_proj.out_features,
            channels=config.channels,
            inner=config.inner,
            gated_format=self.out_proj.act_format,
            dtype=placement.dtype,
        )

    def __call__(
        self,
        buffers: MambaBuffers,
        out: Act,
        _positions_T: Tensor,
        state: LayerState,
        meta: AttentionMetadata,
        *,
        add: bool = False,
    ) -> None:
        """``out`` [T, D] of ``buffers.x``; ``meta`` of the state's group. The rows' states are left in ``state``.

        Args:
            add: to what is there.
        """
        config = self._config
        self.in_proj(buffers.x, Act(buffers.projected))
        steps = config.inner + config.channels
        gate, inputs, dt = (
            buffers.projected[:, start:stop]
            for start, stop in pairwise((0, config.inner, steps, steps + config.num_heads))
        )
        causal_conv(inputs, self.conv_weight, state, meta, buffers.xbc, bias_C=self.conv_bias)
        selective_scan(
            buffers.xbc,
            dt,
            self.a_log,
            self.dt_bias,
            self.d,
            state,
            meta,
            buffers.mixed,
            dt_limit=config.step_limit,
        )
        silu_gate(
            buffers.mixed, gate, buffers.gated, weight_N=self.norm_weight, groups=config.num_groups, eps=self._eps
        )
        self.out_proj(buffers.gated, out, add=add)

    def destinations(self, prefix: str) -> dict[str, Destination]:
        """Checkpoint names of the layer's weights and where each goes."""
        parts, named = self.in_proj.destinations(""), dict[str, Destination]()
        for kind in ("weight", "bias") if self._config.in_bias else ("weight",):
            named[f"{prefix}.in_proj.{kind}"] = Interleaved([parts[f".{part}.{kind}"] for part in self._parts])
        own: Mapping[str, Destination | None] = {
            "conv1d.weight": View(self.conv_weight, self.conv_weight.t().unsqueeze(1)),
            "conv1d.bias": self.conv_bias,
            "A_log": self.a_log,
            "dt_bias": self.dt_bias,
            "D": self.d,
            "norm.weight": self.norm_weight,
        }
        named |= {f"{prefix}.{name}": where for name, where in own.items() if where is not None}
        return named | self.out_proj.destinations(prefix)
