"""Specification of ``gated_conv`` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.int8 import store_act
from app.kernels.state_rows import state_rows
from app.kernels.types import Act, AttentionMetadata, LayerState


def gated_conv_reference(
    projected_TN: Tensor,
    weight_KC: Tensor,
    state: LayerState,
    meta: AttentionMetadata,
    out: Act,
    bias_C: Tensor | None,
) -> None:
    taps = weight_KC.shape[0]
    in_gate_TC, out_gate_TC, x_TC = projected_TN.chunk(3, dim=1)
    for row in state_rows(meta, state.block_size):
        before = state.conv[0].new_zeros(state.conv.shape[1:]) if row.source is None else state.conv[row.source]
        inputs = torch.cat((before, in_gate_TC[row.tokens] * x_TC[row.tokens]))
        count = inputs.shape[0] - taps + 1
        # Tap by tap, not by a library's convolution: a token's sum has one order, whatever else is in the row.
        total = inputs[:count].float() * weight_KC[0]
        for tap in range(1, taps):
            total += inputs[tap : tap + count].float() * weight_KC[tap]
        if bias_C is not None:
            total += bias_C
        scale = None if out.scale is None else out.scale[row.tokens]
        store_act(out_gate_TC[row.tokens].float() * total, Act(out.values[row.tokens], scale))
        for tokens, block in row.kept:
            state.conv[block].copy_(inputs[tokens : tokens + taps - 1])
