"""Specification of ``embed`` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def embed_reference(token_ids_T: Tensor, table_VD: Tensor, out_TD: Tensor) -> None:
    if out_TD.dtype == table_VD.dtype:
        torch.index_select(table_VD, 0, token_ids_T, out=out_TD)
    else:
        out_TD.copy_(table_VD.index_select(0, token_ids_T))
