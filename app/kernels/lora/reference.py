"""Specification of ``lora`` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.lora.step import LowRank
from app.kernels.types import ACT_GROUP, Act


def lora_reference(x: Act, low_rank: LowRank, out_TN: Tensor) -> None:
    out_TN.copy_(out_TN.float() + delta_reference(x, low_rank))


def delta_reference(x: Act, low_rank: LowRank) -> Tensor:
    """[T, N] fp32: what is added, zeros for tokens without a slot."""
    weight, x_TK = low_rank.plain, _widened(x)
    delta_TN = torch.zeros(x_TK.shape[0], weight.up.shape[2], device=x_TK.device)
    for slot in sorted({slot for slot in low_rank.slots.tolist() if slot >= 0}):
        tokens = (low_rank.slots == slot).nonzero().view(-1)
        begin = 0
        for part, end in enumerate(weight.ends.tolist()):
            rank = int(weight.ranks[slot, part])
            if rank:
                low_tR = x_TK[tokens] @ weight.down[slot, part, :rank].float().t()
                delta_TN[tokens, begin:end] = low_tR @ weight.up[slot, :rank, begin:end].float()
            begin = end
    return delta_TN


def _widened(x: Act) -> Tensor:
    """[T, K] fp32."""
    if x.scale is None:
        return x.values.float()
    scale = x.scale if x.scale.shape[1] == 1 else x.scale.repeat_interleave(ACT_GROUP, 1)[:, : x.values.shape[1]]
    return x.values.float() * scale
