"""Blocks of a file taken apart, and put together again: words of codes, and scales.

n rows, G groups of 32 along K, B blocks along K, W words of a group.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from app.kernels.blocks.layout import GROUP, LAYOUTS, WHOLE, BlockLayout
from app.kernels.int8 import quantize

_SUPER_GROUPS: Final = 8
_FIFTH = torch.arange(256)[None, :, None] >> torch.arange(8) & 1
_PLACE = 2 * torch.arange(4)[:, None] + torch.tensor([0, 8, 16, 24, 1, 9, 17, 25])
_BYTES_TO_HIGH: Final = (_FIFTH << _PLACE[:, None]).sum(dim=-1).to(torch.int32)
"""[4, 256]: the bits of 8 neighbours, those of byte s of 32, where a word of fifth bits has them."""


def planes(layout: BlockLayout, blocks_nb: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Takes rows of a file's blocks apart.

    Args:
        blocks_nb: [n, bytes of a row] uint8.

    Returns:
        Words [n, G * W] int32, and for each field of the layout a tensor [n, B, count of its bytes] uint8.
    """
    rows = blocks_nb.shape[0]
    blocks = blocks_nb.reshape(rows, -1, layout.file_bytes)
    name = layout.name
    if name == "Q8_0":
        codes = blocks[..., 2:].contiguous().bitwise_xor(128)
        return _words(codes), [blocks[..., :2]]
    if name in ("Q4_0", "IQ4_NL"):
        return _words(blocks[..., 2:]), [blocks[..., :2]]
    if name == "MXFP4":
        return _words(blocks[..., 1:]), [blocks[..., :1]]
    if name == "Q4_1":
        return _words(blocks[..., 4:]), [blocks[..., :2], blocks[..., 2:4]]
    if name in ("Q5_0", "Q5_1"):
        begin = 2 if name == "Q5_0" else 4
        high = _fifth_bits(blocks[..., begin : begin + 4])
        nibbles = blocks[..., begin + 4 :].contiguous().view(torch.int32)
        words = torch.cat((nibbles, high[..., None]), dim=-1)
        return words.flatten(1), [blocks[..., at : at + 2] for at in range(0, begin, 2)]
    if name == "Q6_K":
        return _of_codes(_codes_q6_k(blocks), 2), [blocks[..., 208:210], blocks[..., 192:208]]
    scales, minima = _super_scales(blocks[..., 4:16])
    codes = _codes_k(blocks, layout)
    fields = [blocks[..., :2], blocks[..., 2:4], scales, minima]
    return _of_codes(codes, 1 if name == "Q5_K" else 0), fields


def whole_planes(rows_nK: Tensor) -> tuple[Tensor, list[Tensor]]:
    """As :func:`planes`, of floating rows, which become :data:`~app.kernels.blocks.layout.WHOLE`."""
    values, scale = quantize(rows_nK.reshape(rows_nK.shape[0], -1, GROUP), torch.float16)
    return _words(values.view(torch.uint8).bitwise_xor(128)), [scale[..., None].view(torch.uint8)]


def codes_of(layout: BlockLayout, words: Tensor) -> Tensor:
    """Integers [n, K] int16 that the words [n, G, W] int32 of rows mean."""
    rows, groups, _ = words.shape
    parts = words.contiguous().view(torch.uint8).view(rows, groups, layout.words, 4)
    if layout is WHOLE:
        return parts.reshape(rows, -1).to(torch.int16) - layout.offset
    nibbles = parts[:, :, :4].reshape(rows, groups, 16)
    codes = torch.cat((nibbles & 15, nibbles >> 4), dim=-1)
    if layout.values:
        return torch.tensor(layout.values, dtype=torch.int16)[codes.int()].view(rows, -1)
    if layout.words == 5:
        shifts = torch.arange(8, dtype=torch.uint8)[:, None]
        codes |= (((parts[:, :, 4, None] >> shifts) & 1) << 4).reshape(rows, groups, GROUP)
    elif layout.words == 6:
        shifts = torch.arange(0, 8, 2, dtype=torch.uint8)[:, None]
        codes |= (((parts[:, :, 4:, None] >> shifts) & 3) << 4).reshape(rows, groups, GROUP)
    return codes.reshape(rows, -1).to(torch.int16) - layout.offset


def scales_of(layout: BlockLayout, fields: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Scales [n, K / 16] fp32, and minima likewise, of the fields of rows."""
    name = layout.name
    if name == "MXFP4":
        exponents = fields[0].flatten(1).to(torch.int32)
        bits = torch.where(exponents < 2, 0x200000 << exponents, (exponents - 1) << 23)
        return bits.view(torch.float32).repeat_interleave(2, dim=1), None
    scale = _halves(fields[0])
    if name in ("Q4_K", "Q5_K"):
        minimum = -(_halves(fields[1])[..., None] * fields[3].float())
        scale = scale[..., None] * fields[2].float()
        return (each.flatten(1).repeat_interleave(2, dim=1) for each in (scale, minimum))  # type: ignore[return-value]
    if name == "Q6_K":
        return (scale[..., None] * fields[1].contiguous().view(torch.int8).float()).flatten(1), None
    minima = _halves(fields[1]).repeat_interleave(2, dim=1) if layout.has_min else None
    return scale.repeat_interleave(2, dim=1), minima


def _halves(field: Tensor) -> Tensor:
    """[n, B] fp32 of [n, B, 2] bytes."""
    return field.contiguous().view(torch.float16).squeeze(-1).float()


def _words(parts: Tensor) -> Tensor:
    """[n, B, bytes] uint8 as [n, words] int32."""
    return parts.contiguous().view(torch.int32).flatten(1)


def _fifth_bits(bits: Tensor) -> Tensor:
    """A word [n, G] int32 of fifth bits of the file's [n, G, 4] bytes, neighbour i in bit i."""
    parts = bits.int()
    high = _BYTES_TO_HIGH[0][parts[..., 0]]
    for s in range(1, 4):
        high |= _BYTES_TO_HIGH[s][parts[..., s]]
    return high


def _of_codes(codes: Tensor, high_bits: int) -> Tensor:
    """Words [n, G * W] int32 of codes [n, G, 32] uint8 with ``high_bits`` beyond four."""
    rows, groups, _ = codes.shape
    low = codes & 15
    parts = [low[..., :16] | (low[..., 16:] << 4)]
    if high_bits:
        high = (codes >> 4).view(rows, groups, -1, 8 // high_bits, 4)
        shifts = torch.arange(0, 8, high_bits, dtype=torch.uint8)[:, None]
        parts.append((high << shifts).sum(dim=-2, dtype=torch.uint8).flatten(2))
    return torch.cat(parts, dim=-1).view(torch.int32).flatten(1)


def _super_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima [n, B, 8] of the 12 bytes that types ``Q4_K`` and ``Q5_K`` keep them in, 6 bits each."""
    low, mid, high = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = torch.cat((low & 63, (high & 15) | ((low >> 2) & 48)), dim=-1)
    minima = torch.cat((mid & 63, (high >> 4) | ((mid >> 2) & 48)), dim=-1)
    return scales, minima


def _codes_k(blocks: Tensor, layout: BlockLayout) -> Tensor:
    """Codes [n, G, 32] uint8 of blocks of Q4_K or Q5_K."""
    rows = blocks.shape[0]
    nibbles = blocks[..., layout.file_bytes - 128 :].reshape(rows, -1, 4, 1, 32)
    shifts = torch.tensor([0, 4], dtype=torch.uint8)[:, None]
    codes = ((nibbles >> shifts) & 15).view(rows, -1, _SUPER_GROUPS, 32)
    if layout is LAYOUTS["Q5_K"]:
        each = torch.arange(8, dtype=torch.uint8)[:, None]
        codes |= ((blocks[..., None, 16:48] >> each) & 1) << 4
    return codes.view(rows, -1, 32)


def _codes_q6_k(blocks: Tensor) -> Tensor:
    """Codes [n, G, 32] uint8 of blocks of Q6_K."""
    rows = blocks.shape[0]
    low = blocks[..., :128].reshape(rows, -1, 2, 1, 64)
    low = (low >> torch.tensor([0, 4], dtype=torch.uint8)[:, None]) & 15
    high = blocks[..., 128:192].reshape(rows, -1, 2, 1, 32)
    high = (high >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]) & 3
    return low.reshape(rows, -1, 32) | (high.reshape(rows, -1, 32) << 4)
