"""Weights in blocks, filled row by row."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from app.kernels.blocks.layout import GROUP, LAYOUTS, PANEL, WHOLE, BlockLayout
from app.kernels.blocks.planes import planes, whole_planes
from app.kernels.linear.pack import positions_of
from app.kernels.native.library import allocate
from app.kernels.types import BlockWeight

_ROWS = 256  # taken apart at a time: their temporaries stay in the cache


def new_block_weight(out_features: int, in_features: int, *, bias: bool, gate_up: bool) -> BlockWeight:
    """A weight [N, K] without memory, of which :func:`allocate_blocks` gives it what its rows' types need.

    Raises:
        ValueError: a K that is no multiple of 32, an odd N of a gate and up projection.
    """
    if in_features < 1 or in_features % GROUP or out_features < 1:
        raise ValueError(f"cannot keep [{out_features}, {in_features}] in blocks: K is no multiple of {GROUP}")
    if gate_up and out_features % 2:
        raise ValueError(f"a gate and an up projection have an even number of rows together, not {out_features}")
    rows = 2 * -(-out_features // (2 * PANEL)) * PANEL if gate_up else -(-out_features // PANEL) * PANEL
    # The epilogue reads the bias by tiles of two panels.
    biases = torch.zeros(-(-rows // (2 * PANEL)) * 2 * PANEL) if bias else None
    return BlockWeight(out_features, in_features, gate_up, biases)


def allocate_blocks(weight: BlockWeight, types: Mapping[tuple[int, int], str]) -> bool:
    """Gives the weight memory, in huge pages; zeros.

    Args:
        types: rows (first, behind the last) -> name of their type; others are kept as ``Q8_0``.

    Returns:
        Whether all rows are kept in the type given. Those of which some share a panel with rows of another type are
        kept as ``Q8_0``.
    """
    kept = dict(types)
    while (mixed := _mixed_panels(weight, kept)).any():
        kept = {rows: name for rows, name in kept.items() if not mixed[_panels_of(weight, *rows)].any()}
    codes = _codes(weight, kept).view(-1, PANEL).amax(dim=1)
    codes = torch.where(codes < 0, WHOLE.code, codes)
    sizes = torch.tensor([layout.panel_bytes(weight.in_features) for layout in LAYOUTS.values()])[codes]
    ends = sizes.cumsum(0)
    weight.panels = torch.stack((ends - sizes, codes), dim=1)
    weight.data = allocate((int(ends[-1]),), torch.uint8)
    return len(kept) == len(types)


def _codes(weight: BlockWeight, types: Mapping[tuple[int, int], str]) -> Tensor:
    """Code of the type of each row in the packed order, -1 of those that are none."""
    rows = positions_of(weight, 0, weight.out_features)
    codes = torch.full((-(-(int(rows.max()) + 1) // PANEL) * PANEL,), -1)
    codes[rows] = WHOLE.code
    for (start, stop), name in types.items():
        codes[positions_of(weight, start, stop - start)] = LAYOUTS[name].code
    return codes


def _mixed_panels(weight: BlockWeight, types: Mapping[tuple[int, int], str]) -> Tensor:
    """[panels] bool: whether a panel's rows are of several types."""
    codes = _codes(weight, types).view(-1, PANEL)
    return (codes != codes.amax(dim=1, keepdim=True)).logical_and(codes >= 0).any(dim=1)


def _panels_of(weight: BlockWeight, start: int, stop: int) -> Tensor:
    """The panels that rows are in, repeated."""
    return positions_of(weight, start, stop - start).div(PANEL, rounding_mode="floor")


def holds(weight: BlockWeight, start: int, stop: int, name: str) -> bool:
    """Whether the panels of rows ``start`` to ``stop`` are of that type."""
    return name in LAYOUTS and bool((weight.panels[_panels_of(weight, start, stop), 1] == LAYOUTS[name].code).all())


def pack_blocks(weight: BlockWeight, first_row: int, name: str, blocks_nb: Tensor) -> None:
    """Stores rows ``first_row`` onwards as a file has them.

    Args:
        name: of their type.
        blocks_nb: [n, bytes of a row] uint8.

    Raises:
        ValueError: they do not fit the weight.
    """
    layout = LAYOUTS[name]
    expected = weight.in_features // layout.block * layout.file_bytes
    if weight.in_features % layout.block or blocks_nb.dim() != 2 or blocks_nb.shape[1] != expected:
        raise ValueError(f"cannot keep {name} {list(blocks_nb.shape)} in rows of {weight.in_features}")
    positions = positions_of(weight, first_row, blocks_nb.shape[0])
    for start in range(0, blocks_nb.shape[0], _ROWS):
        _store(weight, layout, positions[start : start + _ROWS], *planes(layout, blocks_nb[start : start + _ROWS]))


def pack_rows(weight: BlockWeight, first_row: int, rows_nK: Tensor) -> None:
    """Stores floating rows, which are quantised to ``Q8_0``.

    Raises:
        ValueError: they do not fit the weight, or are of panels of another type.
    """
    if rows_nK.dim() != 2 or rows_nK.shape[1] != weight.in_features or not rows_nK.is_floating_point():
        raise ValueError(f"cannot keep {rows_nK.dtype} {list(rows_nK.shape)} in rows of {weight.in_features}")
    positions = positions_of(weight, first_row, rows_nK.shape[0])
    for start in range(0, rows_nK.shape[0], _ROWS):
        _store(weight, WHOLE, positions[start : start + _ROWS], *whole_planes(rows_nK[start : start + _ROWS]))


def panel_parts(weight: BlockWeight, panel: int) -> tuple[BlockLayout, Tensor, list[Tensor]]:
    """A panel's type, its words [words of a row, 16] int32, and of each field [B, count, 16 * bytes] uint8: views."""
    offset, code = weight.panels[panel].tolist()
    layout = list(LAYOUTS.values())[code]
    words = weight.in_features // GROUP * layout.words
    of_words = weight.data[offset : offset + words * 64].view(torch.int32).view(words, PANEL)
    blocks = weight.in_features // layout.block
    begin = offset + words * 64
    scales = weight.data[begin : begin + blocks * layout.scale_bytes * PANEL].view(blocks, -1)
    fields, at = [], 0
    for size, count in layout.fields:
        stop = at + size * count * PANEL
        fields.append(scales[:, at:stop].view(blocks, count, PANEL * size))
        at = stop
    return layout, of_words, fields


def _store(weight: BlockWeight, layout: BlockLayout, positions: Tensor, words: Tensor, fields: list[Tensor]) -> None:
    """Stores rows at positions in the packed order, of which neighbours are neighbours within a panel."""
    at = positions.tolist()
    first = 0
    while first < len(at):
        panel, lane = divmod(at[first], PANEL)
        count = min(PANEL - lane, len(at) - first)
        while at[first + count - 1] != at[first] + count - 1:
            count -= 1
        kept, of_words, of_fields = panel_parts(weight, panel)
        if kept is not layout:
            raise ValueError(f"rows of {layout.name} in a panel of {kept.name}")
        rows = slice(first, first + count)
        of_words[:, lane : lane + count].copy_(words[rows].t())
        for (size, number), target, source in zip(layout.fields, of_fields, fields, strict=True):
            values = source[rows].reshape(count, -1, number, size).permute(1, 2, 0, 3)
            blocks = values.shape[0]
            target[..., lane * size : (lane + count) * size].copy_(values.reshape(blocks, number, count * size))
        first += count
