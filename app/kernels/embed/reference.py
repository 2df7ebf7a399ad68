"""Specification of ``embed`` in plain torch."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def embed_reference(
    token_ids_T: Tensor,
    table_VD: Tensor,
    out_TD: Tensor,
    first: int,
    scale: float = 1.0,
    positions_T: Tensor | None = None,
    position_table_PD: Tensor | None = None,
) -> None:
    entries_T = token_ids_T - first
    last = table_VD.shape[0] - 1
    rows_TD = table_VD.index_select(0, entries_T.clamp(0, last))
    if scale != 1.0 or positions_T is not None:
        rows_TD = rows_TD.float() * scale
    if positions_T is not None and position_table_PD is not None:
        rows_TD += position_table_PD.index_select(0, positions_T).float()
    out_TD.copy_(rows_TD)
    out_TD.masked_fill_(((entries_T < 0) | (entries_T > last)).unsqueeze(1), 0)


@functools.lru_cache(maxsize=16)
def rounded_scale(scale: float, dtype: torch.dtype) -> float:
    """The value of ``dtype`` nearest to ``scale``."""
    return torch.tensor(scale, dtype=dtype, device="cpu").item()
