"""Token embedding and the output head, which may share one table.

The ranks of a tensor-parallel model share the vocabulary out, slice by slice: W rows each, of which the last rank may
not need all.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from app.kernels.collective import Ranks, all_reduce, gather_columns
from app.kernels.embed import embed
from app.kernels.gather_lm_head import gather_lm_head, scratch_dtype
from app.kernels.scale_logits import scale_logits
from app.kernels.types import Act, BlockWeight, LinearWeight, StepArena, Weight
from app.quant.destination import Destination, Extent, Part, Tee
from app.quant.placement import Placement


class _Slice:
    """The rows of a tensor [V, D] that a rank has."""

    def __init__(self, vocab_size: int, ranks: Ranks) -> None:
        self._vocab_size = vocab_size
        self.width = -(-vocab_size // ranks.size)
        """W, the rows that every rank has room for."""
        self.start = min(vocab_size, ranks.rank * self.width)
        self.count = min(vocab_size, self.start + self.width) - self.start

    def part(self, destination: Destination) -> Destination:
        """The destination of the whole tensor, of which ``destination`` takes the slice."""
        if self.count == self._vocab_size:
            return destination
        return Part(destination, Extent(0, self.start, self.start + self.count), self._vocab_size)


class Embedding:
    """Looks rows up in a table [V, D]; :attr:`table` is this rank's slice of it, [W, D].

    Args:
        scale: factor on the table's rows.
        positions: rows of a table of learned positions that are added; None: there is none.
    """

    def __init__(
        self, vocab_size: int, width: int, *, placement: Placement, scale: float = 1.0, positions: int | None = None
    ) -> None:
        self._ranks = placement.ranks
        self.slice = _Slice(vocab_size, self._ranks)
        dtype, device = placement.table_dtype, placement.device
        new = placement.new_table(self.slice.width, width) if positions is None else None
        self.head_weight: Weight | None = None
        """The table, as what an output head tied to it reads; None where that has a weight of its own."""
        if new is None:
            self.table: Tensor | BlockWeight = torch.empty(self.slice.width, width, dtype=dtype, device=device)
            self.rows: Destination = self.table[: self.slice.count]
            """Where a checkpoint's table goes, without rows that only the ranks' equal share adds."""
            if placement.head_shares_table:
                self.head_weight = LinearWeight(self.table)
        else:
            self.table = self.head_weight = new.weight
            self.rows = new.rows(0, self.slice.count)
        self.position_table: Tensor | None = None
        """[P, D], whole on every rank."""
        if positions is not None:
            self.position_table = torch.empty(positions, width, dtype=dtype, device=device)
        self._scale = scale

    def __call__(self, token_ids_T: Tensor, positions_T: Tensor, out_TD: Tensor) -> None:
        """``out`` [T, D] for [T] int64 token ids and positions."""
        embed(
            token_ids_T,
            self.table,
            out_TD,
            first=self.slice.start,
            scale=self._scale,
            positions_T=None if self.position_table is None else positions_T,
            position_table_PD=self.position_table,
        )
        if self._ranks.size > 1:
            all_reduce(out_TD, self._ranks)  # of zeros and one row

    def destination(self) -> Destination:
        """The destination of a checkpoint's table."""
        return self.slice.part(self.rows)


class LMHead:
    """Logits of chosen positions.

    Args:
        tied: to this embedding, whose table serves both where its format allows it.
        scale: factor on the logits.
        softcap: bound of what becomes of them, see :func:`app.kernels.scale_logits.scale_logits`; None for none.
    """

    def __init__(
        self,
        vocab_size: int,
        width: int,
        *,
        placement: Placement,
        tied: Embedding | None,
        scale: float = 1.0,
        softcap: float | None = None,
    ) -> None:
        self._ranks = placement.ranks
        self._scale, self._softcap = scale, softcap
        self._slice = _Slice(vocab_size, self._ranks)
        if tied is not None and tied.head_weight is not None:
            self.weight = tied.head_weight
            self._rows: Destination | None = None
            return
        new = placement.new_head(self._slice.width, width)
        self.weight, self._rows = new.weight, new.rows(0, self._slice.count)

    def __call__(self, hidden_TD: Tensor, indices_L: Tensor, out_LV: Tensor, arena: StepArena) -> None:
        """``out`` [L, V] fp32 for rows ``indices`` [L] int64 of ``hidden``; L is at most what ``arena`` began with, and
        its ``max_logit_rows``."""
        rows = indices_L.numel()
        scratch = self._take_scratch(arena, hidden_TD.shape[1], hidden_TD.dtype)
        if scratch is not None:
            scratch = Act(scratch.values[:rows], None if scratch.scale is None else scratch.scale[:rows])
        if self._ranks.size == 1:
            self._part(hidden_TD, indices_L, out_LV, scratch)
            return
        shape = (self._ranks.size, rows, self._slice.width)
        parts_NLW = self._take_parts(arena)[: math.prod(shape)].view(shape)
        self._part(hidden_TD, indices_L, parts_NLW[self._ranks.rank], scratch)
        gather_columns(parts_NLW, out_LV, self._ranks)

    def _part(self, hidden_TD: Tensor, indices_L: Tensor, out_LW: Tensor, scratch: Act | None) -> None:
        """This rank's logits."""
        gather_lm_head(hidden_TD, indices_L, self.weight, out_LW, scratch=scratch)
        if self._scale != 1.0 or self._softcap is not None:
            scale_logits(out_LW, scale=self._scale, softcap=self._softcap)

    def reserve(self, arena: StepArena, width: int, dtype: torch.dtype) -> None:
        """Takes what a call takes from ``arena``, for hidden states of that width and dtype."""
        self._take_scratch(arena, width, dtype)
        if self._ranks.size > 1:
            self._take_parts(arena)

    def _take_scratch(self, arena: StepArena, width: int, dtype: torch.dtype) -> Act | None:
        kept = scratch_dtype(self.weight, dtype)
        return None if kept is None else arena.take_act(width, kept, self.weight.act_format)

    def _take_parts(self, arena: StepArena) -> Tensor:
        """Room for every rank's logits."""
        return arena.take_flat(self._ranks.size * arena.max_logit_rows * self._slice.width, torch.float32)

    def destination(self, tied: Embedding | None = None) -> Destination:
        """The destination of a checkpoint's head; with ``tied`` that of the tensor which is table and head at once."""
        parts = [part for part in (None if tied is None else tied.rows, self._rows) if part is not None]
        return self._slice.part(parts[0] if len(parts) == 1 else Tee(*parts))
