"""Weights in the layout of the native ``linear``, the same for every instruction set.

``data`` is [tiles, K / q, 32, q]: tiles of 32 outputs, and q neighbours along K side by side, four int8 (stored + 128)
or two bf16. With ``gate_up`` a tile holds 16 outputs of the gate and the 16 of the up projection that they are
multiplied with.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from app.kernels.int8 import quantize
from app.kernels.native.library import allocate
from app.kernels.packed_order import PANEL, packed_positions
from app.kernels.types import BlockWeight, LinearWeight, PackedWeight

__all__ = [
    "LAYOUT",
    "new_packed_weight",
    "new_packed_weights",
    "pack_bias",
    "pack_rows",
    "packed_nbytes",
    "positions_of",
    "unpack",
    "unpackable",
]

LAYOUT = "tile32"
"""Name of the layout; changes whenever buffers packed before could no longer be read."""

_TILE = 32
_ALONG_K = {torch.int8: 4, torch.bfloat16: 2}
_MAX_INT8_WIDTH = 1 << 16  # 255 * 127 * K has to fit int32
_BLOCK_ELEMENTS = 1 << 18  # quantised and moved at a time: stays in the cache


def unpackable(in_features: int, dtype: torch.dtype) -> str | None:
    """Why weights of that K cannot be packed in ``dtype``, int8 or bf16; None when they can."""
    along_k = _ALONG_K[dtype]
    if in_features < 1 or in_features % along_k:
        return f"K is no multiple of {along_k}"
    if dtype is torch.int8 and in_features > _MAX_INT8_WIDTH:
        return f"sums of more than {_MAX_INT8_WIDTH} products overflow"
    return None


def new_packed_weight(
    out_features: int, in_features: int, dtype: torch.dtype, *, bias: bool, gate_up: bool
) -> PackedWeight:
    """Room for a weight [N, K], in huge pages, to be filled with :func:`pack_rows`.

    Args:
        dtype: int8 or bf16.
        bias: whether there is one; zeros until :func:`pack_bias`.
        gate_up: the first N / 2 rows are a gate's, the others those of the up projection it is multiplied with.

    Raises:
        ValueError: another dtype, a K that is no multiple of 4 (int8) or 2 (bf16) or too large for int8, an odd N of a
            gate and up projection.
        NativeError: there are no native kernels here, or no memory.
    """
    return new_packed_weights(1, out_features, in_features, dtype, bias=bias, gate_up=gate_up)[0]


def new_packed_weights(
    count: int, out_features: int, in_features: int, dtype: torch.dtype, *, bias: bool, gate_up: bool
) -> tuple[PackedWeight, ...]:
    """Room for ``count`` weights of one shape, one behind the other in memory.

    Arguments and errors are those of :func:`new_packed_weight`.
    """
    if dtype not in _ALONG_K:
        raise ValueError(f"packed weights are int8 or bfloat16, not {dtype}")
    why = "N has to be at least 1" if out_features < 1 else unpackable(in_features, dtype)
    if why is not None:
        raise ValueError(f"cannot pack {dtype} [{out_features}, {in_features}]: {why}")
    if gate_up and out_features % 2:
        raise ValueError(f"a gate and an up projection have an even number of rows together, not {out_features}")
    rows = _packed_rows(out_features, gate_up)
    data = allocate((count, rows * in_features), dtype)
    # Not in huge pages: each of these few kilobytes would take, and zero, two megabytes.
    scale = torch.zeros(count, rows) if dtype is torch.int8 else None
    biases = torch.zeros(count, rows) if bias else None
    return tuple(
        PackedWeight(
            data[i],
            out_features,
            in_features,
            gate_up,
            None if scale is None else scale[i],
            None if biases is None else biases[i],
        )
        for i in range(count)
    )


def packed_nbytes(out_features: int, in_features: int, dtype: torch.dtype, *, bias: bool, gate_up: bool) -> int:
    """Bytes of the tensors of a packed weight, padding included."""
    rows = _packed_rows(out_features, gate_up)
    return rows * (in_features * dtype.itemsize + 4 * (dtype is torch.int8) + 4 * bias)


def pack_rows(weight: PackedWeight, first_row: int, rows_nK: Tensor) -> None:
    """Stores rows ``first_row`` onwards of [N, K], quantising each symmetrically if the weight is int8.

    Args:
        rows_nK: [n, K] of any floating dtype, on the CPU.

    Raises:
        ValueError: they do not fit the weight.
    """
    if rows_nK.dim() != 2 or rows_nK.shape[1] != weight.in_features or not rows_nK.is_floating_point():
        raise ValueError(f"cannot pack {rows_nK.dtype} {list(rows_nK.shape)} into rows of {weight.in_features}")
    positions = positions_of(weight, first_row, rows_nK.shape[0])
    words = _words(weight)
    step = max(_TILE, _BLOCK_ELEMENTS // weight.in_features // _TILE * _TILE)
    for start in range(0, rows_nK.shape[0], step):
        source, at = rows_nK[start : start + step], positions[start : start + step]
        if weight.scale is None:
            values = source.to(torch.bfloat16).contiguous()
        else:
            values, weight.scale[at] = quantize(source)
            values = values.view(torch.uint8).bitwise_xor(128)
        packed = values.view(torch.int32)
        for first, last in _runs(at):
            _store_run(words, int(at[first]), packed[first:last])


def pack_bias(weight: PackedWeight | BlockWeight, first_row: int, values_n: Tensor) -> None:
    """Stores the bias of rows ``first_row`` onwards.

    Raises:
        ValueError: the weight has none, or they do not fit it.
    """
    if weight.bias is None or values_n.dim() != 1:
        raise ValueError(f"cannot pack a bias of shape {list(values_n.shape)} into a weight with bias {weight.bias}")
    weight.bias[positions_of(weight, first_row, values_n.shape[0])] = values_n.float()


def unpack(weight: PackedWeight) -> LinearWeight:
    """The weight as plain tensors: [N, K], scale and bias [N] fp32."""
    at = positions_of(weight, 0, weight.out_features)
    values = _words(weight).transpose(1, 2).reshape(-1, _words(weight).shape[1])[at].contiguous()
    plain = values.view(weight.data.dtype)
    if weight.scale is not None:
        plain = plain.view(torch.uint8).bitwise_xor(128).view(torch.int8)
    return LinearWeight(
        plain,
        None if weight.scale is None else weight.scale[at],
        None if weight.bias is None else weight.bias[at],
    )


def _packed_rows(out_features: int, gate_up: bool) -> int:
    if gate_up:
        out_features = 2 * PANEL * (-(-out_features // (2 * PANEL)))
    return -(-out_features // _TILE) * _TILE


def _words(weight: PackedWeight) -> Tensor:
    """``data`` as [tiles, K / q, 32] int32."""
    along_k = _ALONG_K[weight.data.dtype]
    return weight.data.view(torch.int32).view(-1, weight.in_features // along_k, _TILE)


def positions_of(weight: PackedWeight | BlockWeight, first_row: int, count: int) -> Tensor:
    """Indices, in the packed order, of ``count`` rows from ``first_row`` on."""
    if first_row < 0 or first_row + count > weight.out_features:
        raise ValueError(f"rows {first_row} to {first_row + count} are not within a weight of {weight.out_features}")
    return packed_positions(weight.out_features, first_row, count, gate_up=weight.gate_up)


def _runs(positions: Tensor) -> list[tuple[int, int]]:
    """Cuts consecutive positions into pieces that stay within a tile, or are whole tiles."""
    broken = ((positions[1:] != positions[:-1] + 1) | (positions[1:] % _TILE == 0)).nonzero().view(-1) + 1
    edges = [0, *broken.tolist(), len(positions)]
    return list(itertools.pairwise(edges))


def _store_run(words: Tensor, position: int, packed: Tensor) -> None:
    tile, lane = divmod(position, _TILE)
    words[tile, :, lane : lane + packed.shape[0]].copy_(packed.t())
