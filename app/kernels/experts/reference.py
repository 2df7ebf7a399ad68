"""Specification of ``experts`` in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from app.kernels.experts.gate import Gate
from app.kernels.int8 import store_act
from app.kernels.linear.reference import matmul_fp32
from app.kernels.types import Act, ExpertsWeight, LinearWeight, Routing


def experts_reference(
    x: Act,
    weight: ExpertsWeight,
    routing: Routing,
    out_TD: Tensor,
    hidden: Act,
    residual: Tensor | None,
    residual_gate: Tensor | None,
    gate: Gate,
) -> None:
    chosen = routing.experts.shape[1]
    sum_TD = torch.zeros(out_TD.shape, device=out_TD.device) if residual is None else residual.float()
    sum_TD = sum_TD.clone() if sum_TD is residual else sum_TD
    if residual_gate is not None:
        sum_TD *= residual_gate.sigmoid()
    offsets = routing.offsets.tolist()
    for expert in range(weight.count):
        begin, end = offsets[expert : expert + 2]
        if begin == end:
            continue
        slots = routing.slots[begin:end].long()
        tokens = slots // chosen
        inputs = Act(x.values[tokens], None if x.scale is None else x.scale[tokens])
        both = matmul_fp32(inputs, _projection(weight.gate_up, weight.gate_up_scale, expert))
        if weight.gate_up_bias is not None:
            both += weight.gate_up_bias[expert].float()
        inner = Act(hidden.values[begin:end], None if hidden.scale is None else hidden.scale[begin:end])
        first, up = both.chunk(2, dim=-1)
        store_act(_gated(first, up, gate), inner)
        result = matmul_fp32(inner, _projection(weight.down, weight.down_scale, expert))
        if weight.down_bias is not None:
            result += weight.down_bias[expert].float()
        # A token has an expert once at most: nothing is added twice at the same place.
        sum_TD.index_add_(0, tokens, routing.weights.view(-1)[slots, None] * result)
    out_TD.copy_(sum_TD)


def _gated(gate: Tensor, up: Tensor, how: Gate) -> Tensor:
    if how.limit is None:
        return (F.silu(gate) if how.activation == "silu" else F.gelu(gate, approximate="tanh")) * up
    gate, up = gate.clamp(max=how.limit), up.clamp(-how.limit, how.limit)
    return (up + 1) * (gate * (how.alpha * gate).sigmoid())


def _projection(values: Tensor, scale: Tensor | None, expert: int) -> LinearWeight:
    return LinearWeight(values[expert], None if scale is None else scale[expert])
