"""Token embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.check import FLOATING, check_tensor
from app.kernels.dispatch import native, runs_triton
from app.kernels.embed.cpu import embed_cpu
from app.kernels.embed.reference import embed_reference

__all__ = ["embed"]


def embed(token_ids_T: Tensor, table_VD: Tensor, out_TD: Tensor, *, first: int = 0) -> None:
    """Copies the table's row of each token: ``out[t] = table[token_ids[t] - first]``, zeros where it has no such row.

    Args:
        token_ids_T: [T] int64.
        table_VD: [V, D] floating.
        out_TD: [T, D] of the table's dtype, or fp32 where the table is bf16.
        first: the token of the table's first row, in a rank that holds a slice of the vocabulary.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    check_tensor("embed", "token_ids", token_ids_T, (token_ids_T.numel(),), torch.int64)
    check_tensor("embed", "table", table_VD, (table_VD.shape[0], table_VD.shape[-1]), *FLOATING)
    dtypes = (torch.bfloat16, torch.float32) if table_VD.dtype == torch.bfloat16 else (table_VD.dtype,)
    check_tensor("embed", "out", out_TD, (token_ids_T.numel(), table_VD.shape[1]), *dtypes)
    if runs_triton(table_VD):
        from app.kernels.embed.triton import embed_triton  # only a GPU needs Triton

        embed_triton(token_ids_T, table_VD, out_TD, first)
    elif native("embed", table_VD, out_TD):
        embed_cpu(token_ids_T, table_VD, out_TD, first)
    else:
        embed_reference(token_ids_T, table_VD, out_TD, first)
