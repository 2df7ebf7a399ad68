"""Token embedding and the output head, which may share one table."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.embed import embed
from app.kernels.gather_lm_head import gather_lm_head
from app.kernels.types import LinearWeight


class Embedding:
    """Looks rows up in ``table`` [V, D]."""

    def __init__(self, vocab_size: int, width: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.table = torch.empty(vocab_size, width, dtype=dtype, device=device)

    def __call__(self, token_ids_T: Tensor, out_TD: Tensor) -> None:
        embed(token_ids_T, self.table, out_TD)


class LMHead:
    """Logits of chosen positions. ``table`` [V, D] is the embedding's when the two are tied."""

    def __init__(self, table_VD: Tensor) -> None:
        self.weight = LinearWeight(table_VD)

    def __call__(self, hidden_TD: Tensor, indices_L: Tensor, out_LV: Tensor) -> None:
        """``out`` [L, V] fp32 for rows ``indices`` [L] int64 of ``hidden``."""
        gather_lm_head(hidden_TD, indices_L, self.weight, out_LV)
