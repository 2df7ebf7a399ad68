"""A mixture of experts beside an expert that every token goes through, each with norms of its own (Gemma 4).

The sublayer reads the stream as it is. The shared expert, the router and the others each norm it for themselves; what
the shared one made and what the others made are normed, and added.

T tokens of a step, X experts, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import torch

from app.kernels.add_norm import add_norm
from app.kernels.types import Act, ActFormat, StepArena
from app.layers.blocks import Mlp, MlpBuffers, MlpLayout
from app.layers.config import ClampedSwiglu, ExpertsConfig, MlpConfig
from app.layers.experts import Experts, ExpertsBuffers, ExpertsLayout
from app.layers.norm import NoNorm, RMSNorm
from app.quant.destination import Destination, Scaled
from app.quant.placement import Placement


@dataclass(frozen=True, slots=True)
class ExpertsApartBuffers:
    """A step's buffers of :class:`ExpertsApart`."""

    x: Act
    """[T, D] the stream, floating."""
    shared: MlpBuffers
    experts: ExpertsBuffers
    made: Act
    """[T, D] what either made."""


@dataclass(frozen=True, slots=True)
class ExpertsApartLayout:
    """Layout of :class:`ExpertsApart`."""

    width: int
    dtype: torch.dtype
    shared: MlpLayout
    experts: ExpertsLayout

    def take(self, arena: StepArena) -> ExpertsApartBuffers:
        """The buffers of a step."""
        return ExpertsApartBuffers(
            x=arena.take_act(self.width, self.dtype, ActFormat.FLOAT),
            shared=self.shared.take(arena),
            experts=self.experts.take(arena),
            made=Act(arena.take(self.width, self.dtype)),
        )


class ExpertsApart:
    """The shared expert, the others, and all of their norms.

    Args:
        width: D.
        eps: of the norms.

    Raises:
        ValueError: the config has no shared expert, or one with a gate or a clamp.
    """

    def __init__(self, config: ExpertsConfig, width: int, eps: float, *, placement: Placement) -> None:
        if config.shared_width is None or config.shared_gate or isinstance(config.activation, ClampedSwiglu):
            raise ValueError("experts apart have a plain shared expert beside them")
        shared = MlpConfig(width=config.shared_width, activation=config.activation)
        self._shared = Mlp(shared, width, placement=placement)
        self._experts = Experts(msgspec.structs.replace(config, shared_width=None), width, placement=placement)
        self._pre_norms = tuple(RMSNorm(width, eps, placement=placement) for _ in range(2))
        self._post_norms = tuple(RMSNorm(width, eps, placement=placement) for _ in range(2))
        self._eps = eps
        self._router_scale_D = torch.empty(width, dtype=torch.float32, device=placement.device)
        """The weights of the router's norm, times 1 / sqrt(D)."""
        self.layout = ExpertsApartLayout(width, placement.dtype, self._shared.layout, self._experts.layout)

    def __call__(self, buffers: ExpertsApartBuffers, out: Act) -> None:
        """``out`` [T, D] of ``buffers.x``."""
        stream_TD = buffers.x.values
        self._pre_norms[0](stream_TD, buffers.shared.x)
        self._shared(buffers.shared, buffers.made)
        self._post_norms[0](buffers.made.values, out)
        add_norm(stream_TD, self._router_scale_D, self._eps, buffers.experts.x)
        self._experts.choose(buffers.experts)
        self._pre_norms[1](stream_TD, buffers.experts.inputs)
        self._experts.mix(buffers.experts, buffers.made.values)
        NoNorm().behind(self._post_norms[1], buffers.made.values, buffers.x, out.values)

    def destinations(self, prefix: str) -> dict[str, Destination]:
        """Checkpoint names of the shared expert below ``prefix``, and of all else below the layer's own prefix."""
        layer = prefix.rpartition(".")[0]
        named = self._shared.destinations(prefix) | self._experts.destinations(layer)
        named[f"{layer}.router.scale"] = Scaled(self._router_scale_D, self.layout.width**-0.5)
        norms = {
            "pre_feedforward_layernorm": self._pre_norms[0],
            "pre_feedforward_layernorm_2": self._pre_norms[1],
            "post_feedforward_layernorm_1": self._post_norms[0],
            "post_feedforward_layernorm_2": self._post_norms[1],
        }
        for name, norm in norms.items():
            named |= norm.destinations(f"{layer}.{name}")
        return named
