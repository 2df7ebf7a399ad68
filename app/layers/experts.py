"""Mixture of experts in place of a block's MLP (Shazeer et al. 2017, arXiv:1701.06538; Fedus et al. 2021,
arXiv:2101.03961).

The router stays floating where all other weights are int8, and reads the floating stream: it is less than a hundredth
of what a token reads of a layer, and of what int8 costs a mixture an int8 router is a seventh.

T tokens of a step, X experts of which k are chosen, D model width, I width of an expert. The ranks of a tensor-parallel
model have all experts, of each an equal share of its width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.kernels.collective import ONE_RANK, all_reduce
from app.kernels.experts import ExpertsScratch, ExpertsScratchLayout, experts
from app.kernels.quantize import quantize
from app.kernels.route import MAX_EXPERTS, Scoring, route
from app.kernels.types import Act, ActFormat, Routing, StepArena
from app.layers.config import ExpertsConfig
from app.layers.linear import Linear, Split, rank_share
from app.quant.destination import Destination
from app.quant.placement import Placement


@dataclass(frozen=True, slots=True)
class ExpertsBuffers:
    """A step's buffers of :class:`Experts`."""

    x: Act
    """[T, D] floating, for the router."""
    inputs: Act
    """[T, D] the same in the format that the experts want."""
    logits: Tensor
    """[T, X] fp32."""
    routing: Routing
    scratch: ExpertsScratch


@dataclass(frozen=True, slots=True)
class ExpertsLayout:
    """Layout of :class:`Experts`."""

    width: int
    x_dtype: torch.dtype
    input_format: ActFormat
    count: int
    chosen: int
    scratch: ExpertsScratchLayout

    def take(self, arena: StepArena) -> ExpertsBuffers:
        """The buffers of a step."""
        x = arena.take_act(self.width, self.x_dtype, ActFormat.FLOAT)
        floating = self.input_format is ActFormat.FLOAT
        return ExpertsBuffers(
            x=x,
            inputs=x if floating else arena.take_act(self.width, self.x_dtype, self.input_format),
            logits=arena.take(self.count, torch.float32),
            routing=Routing(
                experts=arena.take(self.chosen, torch.int32),
                weights=arena.take(self.chosen, torch.float32),
                slots=arena.take(self.chosen, torch.int32).view(-1),
                offsets=arena.take_flat(self.count + 1, torch.int32),
            ),
            scratch=self.scratch.take(arena),
        )


class Experts:
    """A router, and the gated MLPs with SiLU that it chooses among.

    Args:
        width: D.

    Raises:
        ValueError: the config asks for what no kernel computes yet.
    """

    def __init__(
        self, config: ExpertsConfig, width: int, *, placement: Placement, scoring: Scoring = Scoring.SOFTMAX
    ) -> None:
        if config.activation != "silu":
            raise ValueError(f"no kernel has experts with the activation {config.activation!r}")
        if config.shared_width is not None:
            raise ValueError("Experts has no shared expert")
        if config.count > MAX_EXPERTS:
            raise ValueError(f"no kernel chooses among {config.count} experts, {MAX_EXPERTS} are the most")
        self._config, self._scoring, self._ranks = config, scoring, placement.ranks
        self._inner = config.width // self._ranks.size
        router = replace(placement.floating(), ranks=ONE_RANK)
        self._router = Linear({"gate": config.count}, width, split=Split.OUTPUTS, bias=False, placement=router)
        self._new = placement.new_experts(config.count, self._inner, width)
        self.weight = self._new.weight
        self.layout = ExpertsLayout(
            width=width,
            x_dtype=placement.table_dtype,
            input_format=self.weight.act_format,
            count=config.count,
            chosen=config.chosen,
            scratch=ExpertsScratchLayout.of(self.weight, config.chosen, placement.dtype),
        )

    def __call__(self, buffers: ExpertsBuffers, out: Act, *, shared: Tensor | None = None) -> None:
        """``out`` [T, D] of ``buffers.x``.

        Args:
            shared: [T, D] is added, what a shared expert made, of a rank's share of it; perhaps ``out`` itself.
        """
        self._router(buffers.x, Act(buffers.logits))
        route(buffers.logits, buffers.routing, scoring=self._scoring, normalise=self._config.normalise)
        if buffers.inputs.scale is not None:
            quantize(buffers.x.values, buffers.inputs)
        experts(buffers.inputs, self.weight, buffers.routing, out.values, buffers.scratch, residual=shared)
        if self._ranks.size > 1:
            all_reduce(out.values, self._ranks)

    def destinations(self, prefix: str) -> dict[str, Destination]:
        """``gate``, and each expert's ``experts.{i}.gate_proj``, ``up_proj`` and ``down_proj`` below ``prefix``."""
        named, new, inner = self._router.destinations(prefix), self._new, self._inner
        for i in range(self._config.count):
            expert = f"{prefix}.experts.{i}"
            named[f"{expert}.gate_proj.weight"] = rank_share(new.gate_up(i, 0, inner), 0, self._ranks)
            named[f"{expert}.up_proj.weight"] = rank_share(new.gate_up(i, inner, 2 * inner), 0, self._ranks)
            named[f"{expert}.down_proj.weight"] = rank_share(new.down(i), 1, self._ranks)
        return named
