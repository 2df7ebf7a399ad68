"""Specification of ``embed`` in plain torch."""

from __future__ import annotations

from torch import Tensor


def embed_reference(token_ids_T: Tensor, table_VD: Tensor, out_TD: Tensor, first: int) -> None:
    entries_T = token_ids_T - first
    last = table_VD.shape[0] - 1
    out_TD.copy_(table_VD.index_select(0, entries_T.clamp(0, last)))
    out_TD.masked_fill_(((entries_T < 0) | (entries_T > last)).unsqueeze(1), 0)
