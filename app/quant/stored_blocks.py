"""The way of a checkpoint's blocks to where they are kept as they are.

A tensor of block-quantised rows may be cut and reordered by rows, never computed with: what a model wants times a
factor, transposed or by columns is no longer made of its blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from app.quant.destination import Adapted, Destination, Interleaved, Part


@runtime_checkable
class TakesBlocks(Protocol):
    """A destination of rows whose memory is what the type of their blocks needs."""

    def declare(self, name: str, /) -> None:
        """Tells the type of the blocks that will come, before any do."""

    def takes(self, name: str, /) -> bool:
        """Whether rows of that type are kept as they come: it was declared, and is known."""

    def copy_blocks(self, name: str, blocks_nb: Tensor, /) -> None:
        """Stores rows [n, bytes of a row] uint8 of that type."""


def block_parts(destination: Destination, rows: Tensor) -> list[tuple[TakesBlocks, Tensor]]:
    """Where rows [n, ...] of a checkpoint's tensor go that are moved as they are; nowhere, where some are not."""
    match destination:
        case TakesBlocks():
            return [(destination, rows)]
        case Part() if destination.extent.dim == 0:
            return block_parts(destination.destination, destination.extent.of(rows))
        case Adapted() if destination.moves_rows:
            return block_parts(destination.destination, destination.adapt(rows))
        case Interleaved():
            parts = [block_parts(*each) for each in destination.split(rows)]
            return [each for part in parts for each in part] if all(parts) else []
    return []


def block_places(destination: Destination) -> list[TakesBlocks]:
    """Where a tensor's rows go as they are; nowhere, where some are not."""
    if len(destination.shape) != 2:
        return []
    return [place for place, _ in block_parts(destination, torch.empty(destination.shape[0], 1))]


def declare_blocks(
    destinations: Mapping[str, Destination], twins: Mapping[str, Sequence[str]], types: Mapping[str, str]
) -> None:
    """Tells the destinations the types of a checkpoint's tensors.

    Args:
        twins: see :meth:`app.models.base.Model.twins`.
        types: name of a tensor -> its type, of those that are stored in blocks.
    """
    for name, destination in destinations.items():
        stored = next((each for each in (name, *twins.get(name, ())) if each in types), None)
        if stored is not None:
            for place in block_places(destination):
                place.declare(types[stored])
