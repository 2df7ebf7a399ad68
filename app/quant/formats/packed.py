"""Weights in the layout of the native kernels, packed row by row as a checkpoint is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from app.kernels.backend import Backend
from app.kernels.linear.pack import new_packed_weight, new_packed_weights, pack_bias, pack_rows
from app.kernels.types import ActFormat, NativeWeight, PackedExperts, PackedWeight
from app.quant.destination import Destination
from app.quant.experts import NO_BIAS, ExpertsBias
from app.quant.formats import WeightFormat
from app.quant.formats.base import NewExperts, NewWeight, Site, Storage
from app.quant.formats.int8 import INT8
from app.quant.formats.plain import PlainExperts, PlainWeight


class NewPackedWeight:
    """A packed weight [n, k], int8 or bf16, to be filled."""

    def __init__(self, n: int, k: int, *, dtype: torch.dtype, bias: bool, gate_up: bool) -> None:
        self.weight = new_packed_weight(n, k, dtype, bias=bias, gate_up=gate_up)

    def rows(self, start: int, stop: int) -> Destination:
        """Where rows ``start`` to ``stop`` of the weight go."""
        return PackedRows(self.weight, start, stop)

    def bias(self, start: int, stop: int) -> Destination | None:
        """Where their bias goes, if there is one."""
        return _bias(self.weight, start, stop)


class NewPackedExperts:
    """Packed weights of ``count`` experts of width ``inner`` in a model of ``width``, int8 or bf16, to be filled."""

    def __init__(self, count: int, inner: int, width: int, *, dtype: torch.dtype, bias: ExpertsBias = NO_BIAS) -> None:
        self.weight = PackedExperts(
            new_packed_weights(count, 2 * inner, width, dtype, bias=bias.gate_up, gate_up=True),
            new_packed_weights(count, width, inner, dtype, bias=bias.down, gate_up=False),
        )

    def gate_up(self, expert: int, start: int, stop: int) -> Destination:
        """Where rows ``start`` to ``stop`` of an expert's gate and up projection [2I, D] go."""
        return PackedRows(self.weight.gate_up[expert], start, stop)

    def down(self, expert: int) -> Destination:
        """Where an expert's down projection [D, I] goes."""
        return PackedRows(self.weight.down[expert], 0, self.weight.width)

    def gate_up_bias(self, expert: int, start: int, stop: int) -> Destination | None:
        """Where the bias of those rows of its gate and up projection goes, if there is one."""
        return _bias(self.weight.gate_up[expert], start, stop)

    def down_bias(self, expert: int) -> Destination | None:
        """Where the bias of its down projection goes, if there is one."""
        return _bias(self.weight.down[expert], 0, self.weight.width)


class PackedRows:
    """Rows of a packed weight."""

    def __init__(self, weight: PackedWeight, start: int, stop: int) -> None:
        self.weight = weight
        self._start = start
        self.shape = (stop - start, weight.in_features)

    @property
    def nbytes(self) -> int:
        """Bytes of the values and their scales, without padding."""
        scale = 0 if self.weight.scale is None else self.weight.scale.itemsize
        return self.numel() * self.weight.data.itemsize + self.shape[0] * scale

    def numel(self) -> int:
        """Elements of the rows."""
        return self.shape[0] * self.shape[1]

    def copy_(self, source: Tensor, /) -> None:
        """Packs the rows, quantising them first if the weight is int8."""
        pack_rows(self.weight, self._start, source)

    def buffers(self) -> Iterator[Tensor]:
        """See :class:`app.quant.destination.Kept`."""
        return _buffers(self.weight)


class PackedBias:
    """The bias of some rows of a weight that native kernels read.

    Args:
        buffers: gives all buffers of the weight, see :class:`app.quant.destination.Kept`.
    """

    def __init__(self, weight: NativeWeight, start: int, stop: int, buffers: Callable[[], Iterator[Tensor]]) -> None:
        self.weight, self.buffers = weight, buffers
        self._start = start
        self.shape = (stop - start,)

    @property
    def nbytes(self) -> int:
        """Bytes of fp32 values."""
        return self.numel() * torch.float32.itemsize

    def numel(self) -> int:
        """Elements of the bias."""
        return self.shape[0]

    def copy_(self, source: Tensor, /) -> None:
        """Stores the bias in the packed order of rows."""
        pack_bias(self.weight, self._start, source)


def _bias(weight: PackedWeight, start: int, stop: int) -> PackedBias | None:
    return None if weight.bias is None else PackedBias(weight, start, stop, partial(_buffers, weight))


def _buffers(weight: PackedWeight) -> Iterator[Tensor]:
    for buffer in (weight.data, weight.scale, weight.bias):
        if buffer is not None:
            yield buffer


@dataclass(frozen=True, kw_only=True)
class Packed(Storage):
    """Weights that the native kernels read. On the meta device, where only their size counts, plain tensors stand for
    them, as large but for some padding."""

    packed_dtype: torch.dtype

    def suits(self, dtype: torch.dtype, backend: Backend, takes: Callable[[torch.dtype], bool]) -> bool:  # noqa: ARG002
        floating = self.packed_dtype.is_floating_point
        return takes(self.packed_dtype) and (not floating or dtype == self.packed_dtype)

    def new_weight(self, site: Site, n: int, k: int, *, bias: bool, gate_up: bool = False) -> NewWeight:
        if site.device.type != "meta":
            return NewPackedWeight(n, k, dtype=self.packed_dtype, bias=bias, gate_up=gate_up)
        if self.packed_dtype.is_floating_point:
            return PlainWeight(n, k, bias=bias, dtype=self.packed_dtype, device=site.device)
        return INT8.new_weight(site, n, k, bias=bias)

    def new_experts(self, site: Site, count: int, inner: int, width: int, *, bias: ExpertsBias) -> NewExperts:
        if site.device.type != "meta":
            return NewPackedExperts(count, inner, width, dtype=self.packed_dtype, bias=bias)
        if self.packed_dtype.is_floating_point:
            return PlainExperts(count, inner, width, bias=bias, dtype=self.packed_dtype, device=site.device)
        return INT8.new_experts(site, count, inner, width, bias=bias)

    def table_dtype(self, dtype: torch.dtype) -> torch.dtype:  # noqa: ARG002
        return torch.bfloat16


PACKED_BF16 = Packed(
    act_format=ActFormat.FLOAT, packed_dtype=torch.bfloat16, pages="bfloat16", floating=WeightFormat.PACKED_BF16
)
PACKED_INT8 = Packed(
    act_format=ActFormat.INT8, packed_dtype=torch.int8, pages="int8", floating=WeightFormat.PACKED_BF16
)
