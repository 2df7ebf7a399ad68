"""Mixture of experts in place of a block's MLP (Shazeer et al. 2017, arXiv:1701.06538; Fedus et al. 2021,
arXiv:2101.03961).

The router stays floating where all other weights are int8, and reads the floating stream: it is less than a hundredth
of what a token reads of a layer, and of what int8 costs a mixture an int8 router is a seventh.

T tokens of a step, X experts of which k are chosen, D model width, I width of an expert. The ranks of a tensor-parallel
model have all experts, of each an equal share of its width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.kernels.collective import ONE_RANK, all_reduce
from app.kernels.experts import GELU_TANH, SILU, ExpertsScratch, ExpertsScratchLayout, Gate, experts
from app.kernels.quantize import quantize
from app.kernels.route import MAX_EXPERTS, Groups, RoutingRule, Scoring, route
from app.kernels.types import Act, ActFormat, Routing, StepArena
from app.layers.blocks import Mlp, MlpBuffers, MlpLayout
from app.layers.config import ClampedSwiglu, ExpertsConfig, MlpConfig
from app.layers.linear import Linear, Split, rank_share
from app.quant.destination import Destination, Elsewhere
from app.quant.placement import Placement


@dataclass(frozen=True, slots=True)
class ExpertsBuffers:
    """A step's buffers of :class:`Experts`."""

    x: Act
    """[T, D] floating, for the router."""
    inputs: Act
    """[T, D] the same in the format that the experts want."""
    routed: Tensor
    """[T, X] fp32, or [T, X + 1] with the gate of a shared expert: what the router makes."""
    logits: Tensor
    """[T, X] of it."""
    shared_gate: Tensor | None
    """[T, 1] of it."""
    routing: Routing
    scratch: ExpertsScratch
    shared: MlpBuffers | None
    """Buffers of the shared expert; None without one."""


@dataclass(frozen=True, slots=True)
class ExpertsLayout:
    """Layout of :class:`Experts`."""

    width: int
    x_dtype: torch.dtype
    input_format: ActFormat
    count: int
    chosen: int
    scratch: ExpertsScratchLayout
    shared: MlpLayout | None
    shared_gate: bool
    apart: bool
    """Router and experts have inputs of their own."""

    def take(self, arena: StepArena) -> ExpertsBuffers:
        """The buffers of a step."""
        x = arena.take_act(self.width, self.x_dtype, ActFormat.FLOAT)
        floating = self.input_format is ActFormat.FLOAT
        inputs = x if floating and not self.apart else arena.take_act(self.width, self.x_dtype, self.input_format)
        routed = arena.take(self.count + self.shared_gate, torch.float32)
        return ExpertsBuffers(
            x=x,
            inputs=inputs,
            routed=routed,
            logits=routed[:, : self.count],
            shared_gate=routed[:, self.count :] if self.shared_gate else None,
            routing=Routing(
                experts=arena.take(self.chosen, torch.int32),
                weights=arena.take(self.chosen, torch.float32),
                slots=arena.take(self.chosen, torch.int32).view(-1),
                offsets=arena.take_flat(self.count + 1, torch.int32),
            ),
            scratch=self.scratch.take(arena),
            shared=None if self.shared is None else self.shared.take_behind(arena, inputs),
        )


class Experts:
    """A router, the gated MLPs that it chooses among, and one beside them that every token goes through.

    The gate of that one is a row of the router's.

    Args:
        width: D.

    Raises:
        ValueError: the config asks for what no kernel computes yet.
    """

    def __init__(self, config: ExpertsConfig, width: int, *, placement: Placement) -> None:
        if isinstance(config.activation, ClampedSwiglu):
            self._gate = Gate(config.activation.alpha, config.activation.limit)
        elif config.activation == "silu":
            self._gate = SILU
        elif config.activation == "gelu_tanh":
            self._gate = GELU_TANH
        else:
            raise ValueError(f"no kernel has experts with the activation {config.activation!r}")
        if config.count > MAX_EXPERTS:
            raise ValueError(f"no kernel chooses among {config.count} experts, {MAX_EXPERTS} are the most")
        if config.shared_gate and config.shared_width is None:
            raise ValueError("a gate of no shared expert")
        self._config, self._rule, self._ranks = config, _rule(config), placement.ranks
        self._inner = config.width // self._ranks.size
        router = replace(placement.floating(), ranks=ONE_RANK)
        parts = {"router.proj" if config.apart else "gate": config.count}
        if config.shared_gate:
            parts["shared_expert_gate"] = 1
        self._router = Linear(parts, width, split=Split.OUTPUTS, bias=config.router_bias, placement=router)
        self._correction_X: Tensor | None = None
        if config.correction:
            self._correction_X = torch.empty(config.count, dtype=torch.float32, device=placement.device)
        self._factor_X: Tensor | None = None
        if config.apart:
            self._factor_X = torch.empty(config.count, dtype=torch.float32, device=placement.device)
        self._new = placement.new_experts(config.count, self._inner, width, bias=config.bias)
        self.weight = self._new.weight
        self._shared: Mlp | None = None
        if config.shared_width is not None:
            if isinstance(config.activation, ClampedSwiglu):
                raise ValueError("no kernel has a shared expert with a clamped gate")
            shared = MlpConfig(
                width=config.shared_width, activation=config.activation, output_scale=config.output_scale
            )
            self._shared = Mlp(shared, width, placement=placement, sums=False)
        self.layout = ExpertsLayout(
            width=width,
            x_dtype=placement.table_dtype,
            input_format=self.weight.act_format,
            count=config.count,
            chosen=config.chosen,
            scratch=ExpertsScratchLayout.of(self.weight, config.chosen, placement.dtype),
            shared=None if self._shared is None else self._shared.layout,
            shared_gate=config.shared_gate,
            apart=config.apart,
        )

    def __call__(self, buffers: ExpertsBuffers, out: Act) -> None:
        """``out`` [T, D] of ``buffers.x``."""
        self.choose(buffers)
        if buffers.inputs.scale is not None:
            quantize(buffers.x.values, buffers.inputs)
        residual = None
        if self._shared is not None and buffers.shared is not None:
            self._shared(buffers.shared, out)
            residual = out.values
        self.mix(buffers, out.values, residual)

    def choose(self, buffers: ExpertsBuffers) -> None:
        """Routes the tokens of ``buffers.x``."""
        self._router(buffers.x, Act(buffers.routed))
        route(buffers.logits, buffers.routing, self._rule, bias_X=self._correction_X, factor_X=self._factor_X)

    def mix(self, buffers: ExpertsBuffers, out_TD: Tensor, residual: Tensor | None = None) -> None:
        """``out`` [T, D] of ``buffers.inputs``, by the experts that were chosen.

        Args:
            residual: [T, D], to be added; may be ``out``.
        """
        experts(
            buffers.inputs,
            self.weight,
            buffers.routing,
            out_TD,
            buffers.scratch,
            residual=residual,
            residual_gate=buffers.shared_gate,
            gate=self._gate,
        )
        if self._ranks.size > 1:
            all_reduce(out_TD, self._ranks)

    def destinations(self, prefix: str) -> dict[str, Destination]:
        """Below ``prefix``: ``gate`` with its ``e_score_correction_bias`` (of experts apart ``router.proj`` with
        ``router.per_expert_scale``), each expert's ``experts.{i}.gate_proj``, ``up_proj`` and ``down_proj``, and those
        of ``shared_expert`` with its ``shared_expert_gate``."""
        named, new, inner = self._router.destinations(prefix), self._new, self._inner
        parts = {"gate_proj": (0, inner), "up_proj": (inner, 2 * inner)}
        if self._correction_X is not None:
            named[f"{prefix}.gate.e_score_correction_bias"] = self._correction_X
        if self._factor_X is not None:
            named[f"{prefix}.router.per_expert_scale"] = self._factor_X
        for i in range(self._config.count):
            expert = f"{prefix}.experts.{i}"
            for part, (start, stop) in parts.items():
                named[f"{expert}.{part}.weight"] = rank_share(new.gate_up(i, start, stop), 0, self._ranks)
            named[f"{expert}.down_proj.weight"] = rank_share(new.down(i), 1, self._ranks)
            if self._config.bias:
                named |= self._biases(i, expert, parts)
        if self._shared is not None:
            named |= self._shared.destinations(f"{prefix}.shared_expert")
        return named

    def _biases(self, index: int, expert: str, parts: Mapping[str, tuple[int, int]]) -> dict[str, Destination]:
        """Biases of one expert; that of the last product is the first rank's."""
        named: dict[str, Destination] = {}
        for part, (start, stop) in parts.items():
            if (bias := self._new.gate_up_bias(index, start, stop)) is not None:
                named[f"{expert}.{part}.bias"] = rank_share(bias, 0, self._ranks)
        bias = self._new.down_bias(index)
        named[f"{expert}.down_proj.bias"] = Elsewhere(self.layout.width) if bias is None else bias
        return named


def _rule(config: ExpertsConfig) -> RoutingRule:
    groups = config.groups
    return RoutingRule(
        scoring=Scoring(config.scoring),
        normalise=config.normalise,
        least_sum=config.least_sum,
        sum_offset=config.sum_offset,
        scale=config.scale * config.output_scale,
        groups=None if groups is None else Groups(count=groups.count, chosen=groups.chosen, best=groups.best),
    )
