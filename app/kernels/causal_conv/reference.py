"""Specification of ``causal_conv`` in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from app.kernels.state_rows import state_rows
from app.kernels.types import AttentionMetadata, LayerState


def causal_conv_reference(
    x_TC: Tensor,
    weight_KC: Tensor,
    state: LayerState,
    meta: AttentionMetadata,
    out_TC: Tensor,
    bias_C: Tensor | None,
) -> None:
    taps = weight_KC.shape[0]
    for row in state_rows(meta, state.block_size):
        before = state.conv[0].new_zeros(state.conv.shape[1:]) if row.source is None else state.conv[row.source]
        inputs = torch.cat((before, x_TC[row.tokens]))
        count = inputs.shape[0] - taps + 1
        # Tap by tap, not by a library's convolution: a token's sum has one order, whatever else is in the row.
        total = inputs[:count].float() * weight_KC[0]
        for tap in range(1, taps):
            total += inputs[tap : tap + count].float() * weight_KC[tap]
        if bias_C is not None:
            total += bias_C
        out_TC[row.tokens].copy_(F.silu(total))
        for tokens, block in row.kept:
            state.conv[block].copy_(inputs[tokens : tokens + taps - 1])
