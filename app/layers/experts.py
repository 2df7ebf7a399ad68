"""Mixture of experts in place of a block's MLP (Shazeer et al. 2017, arXiv:1701.06538; Fedus et al. 2021,
arXiv:2101.03961).

T tokens of a step, X experts of which k are chosen, D model width, I width of an expert.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch
from torch import Tensor

from app.kernels.experts import ExpertsScratch, experts, take_experts_scratch
from app.kernels.route import Scoring, route
from app.kernels.types import Act, ActFormat, Routing, StepArena
from app.layers.linear import Linear, Split
from app.quant.destination import Destination, Stack
from app.quant.placement import Placement


class Stored(enum.Enum):
    """How a checkpoint holds the experts' weights."""

    EACH = "each"
    """Tensors of each expert: ``experts.{i}.gate_proj.weight`` [I, D], ``up_proj``, and ``down_proj`` [D, I]."""
    FUSED = "fused"
    """Tensors of all experts, gate above up: ``experts.gate_up_proj`` [X, 2I, D] and ``experts.down_proj``
    [X, D, I]."""
    STACKED = "stacked"
    """Tensors of all experts, gate and up apart: ``experts.gate_proj.weight`` [X, I, D], ``up_proj`` and
    ``down_proj``."""


@dataclass(frozen=True, slots=True)
class ExpertsActivations:
    """The buffers of a call, which all layers of one shape can use in turn."""

    logits: Tensor
    """[T, X] fp32."""
    routing: Routing
    scratch: ExpertsScratch


class Experts:
    """A router, and the gated MLPs with SiLU that it chooses among.

    Args:
        count: X.
        chosen: k.
        inner: I.
        width: D.
        normalise: whether a token's weights are divided by their sum.

    Raises:
        ValueError: several ranks: they cannot share experts yet.
    """

    def __init__(
        self,
        count: int,
        chosen: int,
        inner: int,
        width: int,
        *,
        placement: Placement,
        normalise: bool,
        scoring: Scoring = Scoring.SOFTMAX,
    ) -> None:
        if placement.ranks.size > 1:
            raise ValueError("a mixture of experts cannot be shared by several ranks")
        self._count, self._chosen, self._inner = count, chosen, inner
        self._scoring, self._normalise = scoring, normalise
        self._router = Linear({"gate": count}, width, split=Split.OUTPUTS, bias=False, placement=placement)
        self._new = placement.new_experts(count, inner, width)
        self.weight = self._new.weight

    @property
    def act_format(self) -> ActFormat:
        """The format in which the layer wants its input."""
        return self.weight.act_format

    def take(self, arena: StepArena, dtype: torch.dtype) -> ExpertsActivations:
        """Takes the buffers of a call from a step's arena; ``dtype`` is that of activations."""
        logits = arena.take(self._count, torch.float32)
        routing = Routing(
            experts=arena.take(self._chosen, torch.int32),
            weights=arena.take(self._chosen, torch.float32),
            slots=arena.take(self._chosen, torch.int32).view(-1),
            offsets=arena.take_flat(self._count + 1, torch.int32),
        )
        return ExpertsActivations(logits, routing, take_experts_scratch(arena, self.weight, self._chosen, dtype))

    def __call__(self, x: Act, out_TD: Tensor, acts: ExpertsActivations, *, shared: Tensor | None = None) -> None:
        """``x`` and ``out`` [T, D]; ``shared`` [T, D] is added, what a shared expert made: perhaps ``out`` itself."""
        self._router(x, Act(acts.logits))
        route(acts.logits, acts.routing, scoring=self._scoring, normalise=self._normalise)
        experts(x, self.weight, acts.routing, out_TD, acts.scratch, residual=shared)

    def destinations(self, prefix: str, stored: Stored = Stored.EACH) -> dict[str, Destination]:
        """Where a checkpoint's tensors under ``prefix`` go: the router's ``gate.weight``, and the experts'."""
        named, new, inner = self._router.destinations(prefix), self._new, self._inner
        all_experts = range(self._count)
        gates = [new.gate_up(i, 0, inner) for i in all_experts]
        ups = [new.gate_up(i, inner, 2 * inner) for i in all_experts]
        downs = [new.down(i) for i in all_experts]
        match stored:
            case Stored.EACH:
                for name, parts in (("gate_proj", gates), ("up_proj", ups), ("down_proj", downs)):
                    named |= {f"{prefix}.experts.{i}.{name}.weight": part for i, part in enumerate(parts)}
            case Stored.FUSED:
                both = [new.gate_up(i, 0, 2 * inner) for i in all_experts]
                named |= {f"{prefix}.experts.gate_up_proj": Stack(both), f"{prefix}.experts.down_proj": Stack(downs)}
            case Stored.STACKED:
                for name, parts in (("gate_proj", gates), ("up_proj", ups), ("down_proj", downs)):
                    named[f"{prefix}.experts.{name}.weight"] = Stack(parts)
        return named
