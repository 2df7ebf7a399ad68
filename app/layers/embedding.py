"""Token embedding and the output head, which may share one table."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.embed import embed
from app.kernels.gather_lm_head import gather_lm_head, needs_scratch
from app.kernels.types import Act, LinearWeight, PackedWeight, StepArena
from app.quant.destination import Destination, Tee
from app.quant.placement import Placement


class Embedding:
    """Looks rows up in ``table`` [V, D]."""

    def __init__(self, vocab_size: int, width: int, *, placement: Placement) -> None:
        self.table = torch.empty(vocab_size, width, dtype=placement.table_dtype, device=placement.device)

    def __call__(self, token_ids_T: Tensor, out_TD: Tensor) -> None:
        embed(token_ids_T, self.table, out_TD)


class LMHead:
    """Logits of chosen positions.

    Args:
        tied: to this embedding, whose table serves both where its format allows it.
    """

    def __init__(self, vocab_size: int, width: int, *, placement: Placement, tied: Embedding | None) -> None:
        if tied is not None and placement.head_shares_table:
            self.weight: LinearWeight | PackedWeight = LinearWeight(tied.table)
            self._rows: Destination | None = None
            return
        new = placement.new_head(vocab_size, width)
        self.weight, self._rows = new.weight, new.rows(0, vocab_size)

    def __call__(self, hidden_TD: Tensor, indices_L: Tensor, out_LV: Tensor, arena: StepArena) -> None:
        """``out`` [L, V] fp32 for rows ``indices`` [L] int64 of ``hidden``; L is at most what ``arena`` began with."""
        scratch: Act | None = None
        if needs_scratch(self.weight):
            rows = indices_L.numel()
            taken = self._take_scratch(arena, hidden_TD.shape[1], hidden_TD.dtype)
            scratch = Act(taken.values[:rows], None if taken.scale is None else taken.scale[:rows])
        gather_lm_head(hidden_TD, indices_L, self.weight, out_LV, scratch=scratch)

    def reserve(self, arena: StepArena, width: int, dtype: torch.dtype) -> None:
        """Takes what a call takes from ``arena``, for hidden states of that width and dtype."""
        if needs_scratch(self.weight):
            self._take_scratch(arena, width, dtype)

    def _take_scratch(self, arena: StepArena, width: int, dtype: torch.dtype) -> Act:
        dtype = self.weight.data.dtype if isinstance(self.weight, PackedWeight) else dtype
        return arena.take_act(width, dtype, self.weight.act_format)

    def destination(self, table_VD: Destination | None = None) -> Destination:
        """Where a checkpoint's head goes; where the embedding's ``table`` goes that it is tied to."""
        parts = [part for part in (table_VD, self._rows) if part is not None]
        return parts[0] if len(parts) == 1 else Tee(*parts)
