"""Weights in the blocks of their GGUF file: its codes, scales and minima as they are, laid out for the native kernels.

Memory is given once the types of a weight's rows are known (:mod:`app.quant.stored_blocks`). What comes floating, as it
is stored so or is computed with on its way, is kept as ``Q8_0``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from app.kernels.backend import Backend
from app.kernels.blocks.layout import GROUP, LAYOUTS, WHOLE
from app.kernels.blocks.pack import allocate_blocks, holds, new_block_weight, pack_blocks, pack_rows
from app.kernels.types import ActFormat
from app.quant.destination import Destination
from app.quant.experts import ExpertsBias
from app.quant.formats import WeightFormat
from app.quant.formats.base import NewExperts, NewTable, NewWeight, Site, Storage
from app.quant.formats.packed import PACKED_INT8, PackedBias

_log = logging.getLogger(__name__)


class NewBlockWeight:
    """A weight [n, k] in blocks, to be filled."""

    def __init__(self, n: int, k: int, *, bias: bool, gate_up: bool) -> None:
        self.weight = new_block_weight(n, k, bias=bias, gate_up=gate_up)
        self.types: dict[tuple[int, int], str] = {}
        """Rows (first, behind the last) -> type that was declared of them."""

    def rows(self, start: int, stop: int) -> Destination:
        """Where rows ``start`` to ``stop`` of the weight go."""
        return BlockRows(self, start, stop)

    def bias(self, start: int, stop: int) -> Destination | None:
        """Where their bias goes, if there is one."""
        return None if self.weight.bias is None else PackedBias(self.weight, start, stop, self.buffers)

    def allocate(self) -> None:
        """Gives the weight its memory: no more types can be declared."""
        if self.weight.data.numel() == 0 and not allocate_blocks(self.weight, self.types):
            _log.warning("rows of %s lie side by side in one weight: where they meet %s is kept", *self._met())

    def _met(self) -> tuple[str, str]:
        return " and ".join(sorted(set(self.types.values()))), WHOLE.name

    def buffers(self) -> Iterator[Tensor]:
        """See :class:`app.quant.destination.Kept`."""
        self.allocate()
        yield self.weight.data
        yield self.weight.panels
        if self.weight.bias is not None:
            yield self.weight.bias


class BlockRows:
    """Rows of a weight in blocks. Implements :class:`app.quant.stored_blocks.TakesBlocks`."""

    def __init__(self, new: NewBlockWeight, start: int, stop: int) -> None:
        self._new, self._start, self._stop = new, start, stop
        self.shape = (stop - start, new.weight.in_features)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales, without padding."""
        layout = LAYOUTS[self._new.types.get((self._start, self._stop), WHOLE.name)]
        return self.shape[0] * layout.row_bytes(self.shape[1])

    def numel(self) -> int:
        """Elements of the rows."""
        return self.shape[0] * self.shape[1]

    def declare(self, name: str, /) -> None:
        """See :class:`app.quant.stored_blocks.TakesBlocks`; of a type that is not kept the rows will be ``Q8_0``."""
        layout = LAYOUTS.get(name)
        if layout is not None and self.shape[1] % layout.block == 0:
            self._new.types[self._start, self._stop] = name

    def takes(self, name: str, /) -> bool:
        """See :class:`app.quant.stored_blocks.TakesBlocks`."""
        self._new.allocate()
        return holds(self._new.weight, self._start, self._stop, name)

    def copy_blocks(self, name: str, blocks_nb: Tensor, /) -> None:
        """Stores rows [n, bytes of a row] uint8 of a type that :meth:`takes` says yes to."""
        self._new.allocate()
        pack_blocks(self._new.weight, self._start, name, blocks_nb)

    def copy_(self, source: Tensor, /) -> None:
        """Quantises floating rows, of which no type was declared."""
        self._new.allocate()
        pack_rows(self._new.weight, self._start, source)

    def buffers(self) -> Iterator[Tensor]:
        """See :class:`app.quant.destination.Kept`."""
        return self._new.buffers()


@dataclass(frozen=True, kw_only=True)
class Blocks(Storage):
    """Weights in blocks. Those of a K that is no multiple of 32, and of experts, are packed int8."""

    packed_dtype: torch.dtype | None = torch.int8
    keeps_blocks: bool = True
    otherwise: Storage = field(default=PACKED_INT8)

    def suits(self, dtype: torch.dtype, backend: Backend, takes: Callable[[torch.dtype], bool]) -> bool:
        return self.otherwise.suits(dtype, backend, takes)

    def new_weight(self, site: Site, n: int, k: int, *, bias: bool, gate_up: bool = False) -> NewWeight:
        if k % GROUP:
            return self.otherwise.new_weight(site, n, k, bias=bias, gate_up=gate_up)
        return NewBlockWeight(n, k, bias=bias, gate_up=gate_up)

    def new_table(self, site: Site, vocab_size: int, width: int) -> NewTable | None:  # noqa: ARG002
        return None if width % GROUP else NewBlockWeight(vocab_size, width, bias=False, gate_up=False)

    def new_experts(self, site: Site, count: int, inner: int, width: int, *, bias: ExpertsBias) -> NewExperts:
        return self.otherwise.new_experts(site, count, inner, width, bias=bias)

    def table_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return self.otherwise.table_dtype(dtype)


BLOCKS = Blocks(
    act_format=ActFormat.INT8,
    pages=PACKED_INT8.pages,
    floating=WeightFormat.PACKED_BF16,
    converts_to=f"{WHOLE.name} blocks, or packed int8",
)
