"""Weights in the layout of the native kernels, packed row by row as a checkpoint is read."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.linear.pack import new_packed_weight, new_packed_weights, pack_bias, pack_rows
from app.kernels.types import PackedExperts, PackedWeight
from app.quant.destination import Destination


class NewPackedWeight:
    """A packed weight [n, k], int8 or bf16, to be filled."""

    def __init__(self, n: int, k: int, *, dtype: torch.dtype, bias: bool, gate_up: bool) -> None:
        self.weight = new_packed_weight(n, k, dtype, bias=bias, gate_up=gate_up)

    def rows(self, start: int, stop: int) -> Destination:
        """Where rows ``start`` to ``stop`` of the weight go."""
        return PackedRows(self.weight, start, stop)

    def bias(self, start: int, stop: int) -> Destination | None:
        """Where their bias goes, if there is one."""
        return None if self.weight.bias is None else PackedBias(self.weight, start, stop)


class NewPackedExperts:
    """Packed weights of ``count`` experts of width ``inner`` in a model of ``width``, int8 or bf16, to be filled."""

    def __init__(self, count: int, inner: int, width: int, *, dtype: torch.dtype) -> None:
        self.weight = PackedExperts(
            new_packed_weights(count, 2 * inner, width, dtype, bias=False, gate_up=True),
            new_packed_weights(count, width, inner, dtype, bias=False, gate_up=False),
        )

    def gate_up(self, expert: int, start: int, stop: int) -> Destination:
        """Where rows ``start`` to ``stop`` of an expert's gate and up projection [2I, D] go."""
        return PackedRows(self.weight.gate_up[expert], start, stop)

    def down(self, expert: int) -> Destination:
        """Where an expert's down projection [D, I] goes."""
        return PackedRows(self.weight.down[expert], 0, self.weight.width)


class PackedRows:
    """Rows of a packed weight."""

    def __init__(self, weight: PackedWeight, start: int, stop: int) -> None:
        self.weight = weight
        self._start = start
        self.shape = (stop - start, weight.in_features)

    @property
    def nbytes(self) -> int:
        """Of the values and their scales, without padding."""
        scale = 0 if self.weight.scale is None else self.weight.scale.itemsize
        return self.numel() * self.weight.data.itemsize + self.shape[0] * scale

    def numel(self) -> int:
        """Elements of the rows."""
        return self.shape[0] * self.shape[1]

    def copy_(self, source: Tensor, /) -> None:
        """Packs the rows, quantising them first if the weight is int8."""
        pack_rows(self.weight, self._start, source)


class PackedBias:
    """The bias of some rows of a packed weight."""

    def __init__(self, weight: PackedWeight, start: int, stop: int) -> None:
        self.weight = weight
        self._start = start
        self.shape = (stop - start,)

    @property
    def nbytes(self) -> int:
        """Of fp32 values."""
        return self.numel() * torch.float32.itemsize

    def numel(self) -> int:
        """Elements of the bias."""
        return self.shape[0]

    def copy_(self, source: Tensor, /) -> None:
        """Stores the bias in the packed order of rows."""
        pack_bias(self.weight, self._start, source)
