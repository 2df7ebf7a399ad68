"""Tensors in MXFP4, of two tensors each: 32 neighbours along K are 4-bit floats (E2M1) and share a power of two (E8M0).

The format is that of the Open Compute Project's Microscaling Formats 1.0, in the layout of gpt-oss' checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Final

import torch
from torch import Tensor

from app.checkpoints.base import StoredTensor
from app.checkpoints.header import WeightError
from app.quant.destination import Extent

HALVES: Final = {"_blocks": "_scales", "_scales": "_blocks"}
"""Ends of the names of the two tensors, each with the other's."""

_BLOCK_BYTES: Final = 16
_FACTORS: Final = (*(2.0 ** (exponent - 127) for exponent in range(255)), math.nan)
_MAGNITUDES: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES: Final = (*_MAGNITUDES, *(-value for value in _MAGNITUDES))


def widened(tensors: Iterable[StoredTensor]) -> Iterator[StoredTensor]:
    """The same tensors, but for each ``X_blocks`` [..., K / 32, 16] and ``X_scales`` [..., K / 32] the ``X`` [..., K]
    that they are. What lacks its other half, or is of another shape, stays as it is.
    """
    waiting: dict[str, StoredTensor] = {}
    for stored in tensors:
        end = next((end for end in HALVES if stored.name.endswith(end)), None)
        if end is None or stored.name in waiting:
            yield stored
            continue
        name = stored.name.removesuffix(end)
        other = waiting.pop(name + HALVES[end], None)
        if other is None:
            waiting[stored.name] = stored
            continue
        blocks, scales = (stored, other) if end == "_blocks" else (other, stored)
        if not scales.shape or blocks.shape != (*scales.shape, _BLOCK_BYTES):
            yield from (blocks, scales)
            continue
        shape = (*scales.shape[:-1], 2 * _BLOCK_BYTES * scales.shape[-1])
        nbytes = blocks.nbytes + scales.nbytes
        yield StoredTensor(name, blocks.file, shape, nbytes, partial(_read, blocks, scales), "MXFP4")
    yield from waiting.values()


def _read(blocks: StoredTensor, scales: StoredTensor, extent: Extent | None = None) -> Tensor:
    """The tensor or an extent of it, fp32."""
    rows = extent if extent is not None and extent.dim < len(scales.shape) - 1 else None
    packed, exponents = blocks.read(rows), scales.read(rows)
    for stored, tensor in ((blocks, packed), (scales, exponents)):
        if tensor.dtype != torch.uint8:
            raise WeightError(f"{stored.file}: tensor {stored.name!r} is {tensor.dtype}, MXFP4 is of bytes")
    values = _widen(packed, exponents)
    return values if extent is None or rows is not None else extent.of(values)


def _widen(blocks: Tensor, scales: Tensor) -> Tensor:
    """[..., K] fp32 of [..., K / 32, 16] and [..., K / 32]; of a byte the low half comes first."""
    pairs = torch.tensor([(_VALUES[byte & 15], _VALUES[byte >> 4]) for byte in range(256)])
    factors = torch.tensor(_FACTORS)[scales.int()]
    return (pairs[blocks.int()].flatten(-2) * factors[..., None]).flatten(-2)
