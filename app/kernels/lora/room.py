"""Room for the adapters of a linear layer, in the form that its weight asks for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from app.kernels.lora.adapted import LowRankWeight
from app.kernels.lora.pack import PackedLowRankWeight, new_packed_low_rank, pack_low_rank
from app.kernels.types import NativeWeight, Weight


def new_low_rank(
    slots: int, parts: Sequence[int], rank: int, beside: Weight, dtype: torch.dtype
) -> LowRankWeight | PackedLowRankWeight:
    """Room for the adapters of a layer, of which none adds anything yet.

    Args:
        parts: output features of each of its projections.
        rank: R, greatest rank of a slot.
        beside: the layer's weight, [N, K].
        dtype: of the adapters' matrices, unless the weight is one that only native kernels read.

    Raises:
        ValueError: more parts, or a greater rank, than native kernels take.
        NativeError: there are no native kernels here, or no memory.
    """
    if isinstance(beside, NativeWeight):
        return new_packed_low_rank(slots, parts, rank, beside)
    features, width = beside.values.shape
    device = beside.values.device
    return LowRankWeight(
        down=torch.empty(slots, len(parts), rank, width, dtype=dtype, device=device),
        up=torch.empty(slots, rank, features, dtype=dtype, device=device),
        ranks=torch.zeros(slots, len(parts), dtype=torch.int32, device=device),
        ends=torch.tensor(list(accumulate(parts)), dtype=torch.int32, device=device),
    )


def store_low_rank(
    weight: LowRankWeight | PackedLowRankWeight, slot: int, part: int, down_rK: Tensor, up_nr: Tensor
) -> None:
    """Keeps an adapter's matrices of one projection in a slot.

    Args:
        up_nr: with the adapter's scale.
    """
    if isinstance(weight, PackedLowRankWeight):
        pack_low_rank(weight, slot, part, down_rK, up_nr)
        return
    rank, features = down_rK.shape[0], up_nr.shape[0]
    begin = int(weight.ends[part]) - features
    weight.down[slot, part, :rank].copy_(down_rK)
    weight.up[slot, :rank, begin : begin + features].copy_(up_nr.t())
    weight.ranks[slot, part] = rank
