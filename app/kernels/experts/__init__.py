"""The gated MLPs of a mixture of experts: of each token those that ``route`` chose, and their weighted sum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from app.kernels.check import (
    FLOATING,
    check_act,
    check_columns,
    check_group_scale,
    check_tensor,
    check_token_scale,
)
from app.kernels.dispatch import fall_back, runs_triton
from app.kernels.experts.cpu import experts_cpu
from app.kernels.experts.gate import GELU_TANH, SILU, Gate
from app.kernels.experts.reference import experts_reference
from app.kernels.route import MAX_EXPERTS, check_routing
from app.kernels.types import (
    Act,
    ActFormat,
    ExpertsWeight,
    PackedExperts,
    Routing,
    StepArena,
    num_groups,
    num_scales,
)

__all__ = ["GELU_TANH", "SILU", "ExpertsScratch", "ExpertsScratchLayout", "Gate", "experts"]

_NATIVE_FLOATING = (torch.float32, torch.bfloat16)
_MAX_WIDTH = 1 << 16
"""A row of which fits what a native thread has to gather rows in."""


@dataclass(frozen=True, slots=True)
class ExpertsScratch:
    """What lies between the kernels of a call; made by :class:`ExpertsScratchLayout`. S = T * k slots."""

    hidden: Act
    """[S, I], what the down projections multiply. Natively an int8 one's scale is [S, 2 * groups], with their sums."""
    products: Tensor | None
    """[S, I or D], floating, on a GPU: before it is quantised, and each expert's result."""


@dataclass(frozen=True, slots=True)
class ExpertsScratchLayout:
    """Widths and dtypes of an :class:`ExpertsScratch`, which layers of one shape use in turn."""

    chosen: int
    inner: int
    hidden_dtype: torch.dtype
    scales: int
    """Number of scales of a slot's hidden values; 0 where they are floating."""
    products: int
    """Width of the products; 0: there are none."""
    dtype: torch.dtype

    @classmethod
    def of(cls, weight: ExpertsWeight | PackedExperts, chosen: int, dtype: torch.dtype) -> ExpertsScratchLayout:
        """For tokens that choose ``chosen`` experts each; ``dtype`` is that of ``out``."""
        fmt, inner, width = weight.act_format, weight.inner, weight.width
        packed = isinstance(weight, PackedExperts)
        kept = torch.int8 if fmt is not ActFormat.FLOAT else torch.bfloat16 if packed else dtype
        scales = products = 0
        if fmt is not ActFormat.FLOAT:
            scales = 2 * num_groups(inner) if packed else num_scales(inner, fmt)
        if not isinstance(weight, PackedExperts) and runs_triton(weight.down):
            products = max(inner, width) if kept is torch.int8 else width
        return cls(chosen, inner, kept, scales, products, dtype)

    def take(self, arena: StepArena) -> ExpertsScratch:
        """The scratch of a step."""
        values = arena.take(self.chosen * self.inner, self.hidden_dtype).view(-1, self.inner)
        scale = products = None
        if self.scales:
            scale = arena.take(self.chosen * self.scales, torch.float32).view(-1, self.scales)
        if self.products:
            products = arena.take(self.chosen * self.products, self.dtype).view(-1, self.products)
        return ExpertsScratch(Act(values, scale), products)


def experts(
    x: Act,
    weight: ExpertsWeight | PackedExperts,
    routing: Routing,
    out_TD: Tensor,
    scratch: ExpertsScratch,
    *,
    residual: Tensor | None = None,
    residual_gate: Tensor | None = None,
    gate: Gate = SILU,
) -> None:
    """``out[t] = residual[t] * sigmoid(residual_gate[t]) + sum of routing.weights[t, j] *
    down_e(silu(gate_e(x[t])) * up_e(x[t]))`` over the choices j of token t, ``e = routing.experts[t, j]``, each product
    with its bias if there is one.

    Products accumulate in fp32 (int8: exactly, in int32). Results are summed in fp32, in an order that the token's own
    choice decides, so that its bits do not hang on other tokens (but for floating weights on a GPU); on a GPU each
    result is rounded to out's dtype first. Experts that nobody chose are not read.

    Packed weights run natively, whatever the mode.

    Args:
        x: [T, D] in the format that the weight asks for.
        routing: as ``route`` filled it.
        out_TD: [T, D] floating.
        residual: [T, D] floating, such as what a shared expert made; may be the very tensor ``out``.
        residual_gate: [T, 1] fp32, beside a residual; may be columns of a wider tensor. None: the residual is whole.
        gate: what stands in place of ``silu(gate_e) * up_e``.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    if gate.limit is not None and not gate.limit > 0:
        raise ValueError(f"experts: the gate's limit is {gate.limit}, expected more than 0")
    if gate.activation not in (SILU.activation, GELU_TANH.activation):
        raise ValueError(f"experts: the gate's activation is {gate.activation!r}")
    tokens, width, inner = x.values.shape[0], weight.width, weight.inner
    slots = tokens * routing.experts.shape[-1]
    packed = isinstance(weight, PackedExperts)
    floats = _NATIVE_FLOATING if packed else FLOATING
    if weight.count > MAX_EXPERTS or max(width, inner) > _MAX_WIDTH:
        raise ValueError(f"experts: {weight.count} of [{2 * inner}, {width}] are more, or wider, than are supported")
    check_act("experts", "x", x, (tokens, width))
    if (x.scale is None) != (weight.act_format is ActFormat.FLOAT):
        raise ValueError(f"experts: x is {x.values.dtype}, but the weights ask for {weight.act_format.value}")
    check_routing("experts", routing, tokens, weight.count)
    check_tensor("experts", "out", out_TD, (tokens, width), *floats)
    if residual is not None:
        check_tensor("experts", "residual", residual, (tokens, width), *floats)
    if residual_gate is not None:
        if residual is None:
            raise ValueError("experts: there is a gate, but no residual")
        check_columns("experts", "residual_gate", residual_gate, (tokens, 1), torch.float32)
    if isinstance(weight, PackedExperts):
        check_tensor("experts", "x", x.values, (tokens, width), weight.down[0].data.dtype)
        check_group_scale("experts", x)
        check_tensor("experts", "hidden", scratch.hidden.values, (slots, inner), x.values.dtype)
        if scratch.hidden.scale is not None:
            shape = (slots, 2 * num_groups(inner))
            check_tensor("experts", "hidden.scale", scratch.hidden.scale, shape, torch.float32)
        experts_cpu(x, weight, routing, out_TD, scratch.hidden, residual, residual_gate, gate)
        return
    _check_weight(weight, x)
    check_act("experts", "hidden", scratch.hidden, (slots, inner))
    if (scratch.hidden.scale is None) != (x.scale is None):
        raise ValueError(f"experts: hidden is {scratch.hidden.values.dtype}, but x is {x.values.dtype}")
    if runs_triton(x.values):
        check_token_scale("experts", x)
        check_token_scale("experts", scratch.hidden)
        if scratch.products is None:
            raise ValueError("experts: on a GPU there have to be products in the scratch")
        from app.kernels.experts.triton import experts_triton  # only a GPU needs Triton

        products = scratch.products
        experts_triton(x, weight, routing, out_TD, scratch.hidden, products, residual, residual_gate, gate)
        return
    fall_back("experts", "their weights are not packed")
    experts_reference(x, weight, routing, out_TD, scratch.hidden, residual, residual_gate, gate)


def _check_weight(weight: ExpertsWeight, x: Act) -> None:
    dtype = x.values.dtype if weight.gate_up_scale is None else torch.int8
    count, inner, width = weight.count, weight.inner, weight.width
    check_tensor("experts", "gate_up", weight.gate_up, (count, 2 * inner, width), dtype)
    check_tensor("experts", "down", weight.down, (count, width, inner), dtype)
    if (weight.gate_up_scale is None) != (weight.down_scale is None):
        raise ValueError("experts: both projections are int8, or neither is")
    if weight.gate_up_scale is not None and weight.down_scale is not None:
        check_tensor("experts", "gate_up_scale", weight.gate_up_scale, (count, 2 * inner), torch.float32)
        check_tensor("experts", "down_scale", weight.down_scale, (count, width), torch.float32)
    biases = (("gate_up_bias", weight.gate_up_bias, 2 * inner), ("down_bias", weight.down_bias, width))
    for name, bias, outputs in biases:
        if bias is not None:
            check_tensor("experts", name, bias, (count, outputs), *FLOATING)
