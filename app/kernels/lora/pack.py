"""Adapters of a packed linear layer, in the layout of the native kernels and the format of the layer's inputs.

A slot is one stretch of memory. Its way down, [P, panels, K / q, 16, q]: panels of 16 ranks, and q neighbours along K
side by side, four int8 (stored + 128) or two bf16. Its way up, [blocks, R / q, 16, q] in the packed order of the
layer's outputs: a block is what one part adds to a panel of 16 outputs, so that a panel has one block, or several where
it has outputs of several parts. Behind either, int8 only, lie fp32 scales: one a rank, one a packed output.

What is between the two is int8 with a scale for each token and part, or bf16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from app.kernels.int8 import quantize
from app.kernels.lora.adapted import MAX_PARTS, MAX_RANK, LowRankWeight
from app.kernels.native.library import allocate
from app.kernels.packed_order import PANEL, packed_positions
from app.kernels.types import NativeWeight

__all__ = ["PackedLowRankWeight", "new_packed_low_rank", "pack_low_rank", "unpack_low_rank"]

_HEAD_BYTES = 8  # scale and offset of a token's int8 sums
_ZERO = {torch.int8: -0x7F7F7F80, torch.bfloat16: 0}  # four int8 zeros are 0x80808080


@dataclass(frozen=True, slots=True)
class PackedLowRankWeight:
    """The adapters of one packed linear layer, one a slot. Made by :func:`new_packed_low_rank`.

    What lies behind a part's rank is not read.
    """

    data: Tensor
    """[S, words] int32: the slots."""
    ranks: Tensor
    """[S, P] int32: rank of each part; 0 where the slot's adapter leaves the part alone."""
    first_block: Tensor
    """[panels of outputs + 1] int32: the first block of each."""
    block_part: Tensor
    """[blocks] int32: the part of each."""
    ends: tuple[int, ...]
    """The output that each part ends before; the last is N."""
    rank: int
    """R, the greatest rank of a slot."""
    in_features: int
    """K"""
    dtype: torch.dtype
    """int8 or bf16."""
    gate_up: bool
    """Whether outputs are packed as those of a gate and an up projection."""

    @property
    def parts(self) -> int:
        """P, the number of projections that are fused."""
        return len(self.ends)

    @property
    def low_bytes(self) -> int:
        """Bytes of what is between, for a token and part."""
        return 4 * _words(self.rank, self.dtype) + _HEAD_BYTES * (self.dtype is torch.int8)

    @property
    def scratch_width(self) -> int:
        """fp32 elements a token of the scratch that a product needs."""
        return self.parts * self.low_bytes // 4

    @property
    def offsets(self) -> tuple[int, int, int, int]:
        """Words of a slot at which the scales of its way down, its way up and the scales of that begin, and all."""
        scaled = self.dtype is torch.int8
        panels = -(-self.rank // PANEL)
        down = self.parts * panels * _words(self.in_features, self.dtype) * PANEL
        up = down + self.parts * panels * PANEL * scaled
        up_scale = up + len(self.block_part) * _words(self.rank, self.dtype) * PANEL
        return down, up, up_scale, up_scale + (len(self.first_block) - 1) * PANEL * scaled

    def down_words(self, slot: int) -> Tensor:
        """[P, panels, K / q, 16] int32: a slot's way down."""
        words = _words(self.in_features, self.dtype)
        return self.data[slot, : self.offsets[0]].view(self.parts, -1, words, PANEL)

    def down_scale(self, slot: int) -> Tensor:
        """[P, panels * 16] fp32."""
        return self.data[slot, self.offsets[0] : self.offsets[1]].view(torch.float32).view(self.parts, -1)

    def up_words(self, slot: int) -> Tensor:
        """[blocks, R / q, 16] int32: a slot's way up."""
        return self.data[slot, self.offsets[1] : self.offsets[2]].view(-1, _words(self.rank, self.dtype), PANEL)

    def up_scale(self, slot: int) -> Tensor:
        """[packed outputs] fp32."""
        return self.data[slot, self.offsets[2] :].view(torch.float32)

    def outputs(self, part: int) -> tuple[Tensor, Tensor, Tensor]:
        """Packed positions of a part's outputs, the block that each is in, and all blocks of the part."""
        begin = self.ends[part - 1] if part else 0
        positions = packed_positions(self.ends[-1], begin, self.ends[part] - begin, gate_up=self.gate_up)
        blocks = (self.block_part == part).nonzero().view(-1)
        of_panels = torch.full((len(self.first_block) - 1,), -1)
        of_panels[torch.searchsorted(self.first_block, blocks.int(), right=True) - 1] = blocks
        return positions, of_panels[positions // PANEL], blocks


def new_packed_low_rank(slots: int, parts: Sequence[int], rank: int, beside: NativeWeight) -> PackedLowRankWeight:
    """Room for the adapters of a layer, of which none adds anything yet.

    Args:
        parts: output features of each of its projections.
        rank: R, greatest rank of a slot.
        beside: the layer's weight.

    Raises:
        ValueError: more parts, or a greater rank, than kernels take.
        NativeError: there are no native kernels here, or no memory.
    """
    if not (1 <= len(parts) <= MAX_PARTS and 1 <= rank <= MAX_RANK):
        raise ValueError(f"up to {MAX_PARTS} parts and ranks up to {MAX_RANK} are packed, not {len(parts)} and {rank}")
    ends, features = tuple(accumulate(parts)), beside.out_features
    panels = [set[int]() for _ in range(math.ceil(features / (2 * PANEL)) * 2)]
    for part, end in enumerate(ends):
        positions = packed_positions(features, end - parts[part], parts[part], gate_up=beside.gate_up)
        for panel in set((positions // PANEL).tolist()):
            panels[panel].add(part)
    weight = PackedLowRankWeight(
        data=torch.empty(0, dtype=torch.int32),
        ranks=torch.zeros(slots, len(parts), dtype=torch.int32),
        first_block=torch.tensor([0, *accumulate(len(panel) for panel in panels)], dtype=torch.int32),
        block_part=torch.tensor([part for panel in panels for part in sorted(panel)], dtype=torch.int32),
        ends=ends,
        rank=rank,
        in_features=beside.in_features,
        dtype=beside.input_dtype,
        gate_up=beside.gate_up,
    )
    return replace(weight, data=allocate((slots, weight.offsets[-1]), torch.int32))


def pack_low_rank(weight: PackedLowRankWeight, slot: int, part: int, down_rK: Tensor, up_nr: Tensor) -> None:
    """Keeps an adapter's matrices of one projection in a slot, quantising each rank and each output if they are int8.

    Args:
        up_nr: with the adapter's scale.
    """
    rank = down_rK.shape[0]
    values, scale = _as_words(down_rK, weight.dtype)
    panels = -(-rank // PANEL)
    values = F.pad(values, (0, 0, 0, panels * PANEL - rank), value=_ZERO[weight.dtype])
    weight.down_words(slot)[part, :panels].copy_(values.view(panels, PANEL, -1).transpose(1, 2))
    positions, blocks, of_part = weight.outputs(part)
    if scale is not None:
        weight.down_scale(slot)[part, : panels * PANEL] = F.pad(scale, (0, panels * PANEL - rank))
    values, scale = _as_words(F.pad(up_nr, (0, -rank % _along_k(weight.dtype))), weight.dtype)
    up_words = weight.up_words(slot)
    up_words[of_part] = _ZERO[weight.dtype]
    up_words[blocks, : values.shape[1], positions % PANEL] = values
    if scale is not None:
        weight.up_scale(slot)[positions] = scale
    weight.ranks[slot, part] = rank


def unpack_low_rank(weight: PackedLowRankWeight) -> LowRankWeight:
    """The adapters as plain fp32 matrices; zeros behind a part's rank."""
    slots, features = weight.data.shape[0], weight.ends[-1]
    down = torch.zeros(slots, weight.parts, weight.rank, weight.in_features)
    up = torch.zeros(slots, weight.rank, features)
    for slot in range(slots):
        for part, end in enumerate(weight.ends):
            rank = int(weight.ranks[slot, part])
            if rank == 0:
                continue
            positions, blocks, _ = weight.outputs(part)
            words = weight.down_words(slot)[part].transpose(1, 2).flatten(0, 1)[:rank]
            down_rK = _floating(words, weight.dtype)
            up_nr = _floating(weight.up_words(slot)[blocks, :, positions % PANEL], weight.dtype)[:, :rank]
            if weight.dtype is torch.int8:
                down_rK *= weight.down_scale(slot)[part, :rank, None]
                up_nr *= weight.up_scale(slot)[positions, None]
            down[slot, part, :rank] = down_rK
            up[slot, :rank, end - len(positions) : end] = up_nr.t()
    return LowRankWeight(down, up, weight.ranks, torch.tensor(weight.ends, dtype=torch.int32))


def _along_k(dtype: torch.dtype) -> int:
    return 4 // dtype.itemsize


def _words(count: int, dtype: torch.dtype) -> int:
    return -(-count // _along_k(dtype))


def _as_words(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Rows [n, K] as [n, K / q] int32, and the scale of each if they are int8."""
    if dtype is not torch.int8:
        return rows.to(dtype).contiguous().view(torch.int32), None
    values, scale = quantize(rows)
    return values.view(torch.uint8).bitwise_xor(128).contiguous().view(torch.int32), scale


def _floating(words: Tensor, dtype: torch.dtype) -> Tensor:
    """[n, K / q] int32 as fp32 values [n, K] before their scales."""
    values = words.contiguous().view(dtype)
    if dtype is torch.int8:
        values = values.view(torch.uint8).bitwise_xor(128).view(torch.int8)
    return values.float()
