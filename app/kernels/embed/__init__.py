"""Token embedding, with learned positions if there are any."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.check import FLOATING, check_tensor
from app.kernels.dispatch import native, runs_triton
from app.kernels.embed.cpu import embed_blocks_cpu, embed_cpu
from app.kernels.embed.reference import embed_reference, rounded_scale
from app.kernels.types import BlockWeight

__all__ = ["embed"]


def embed(
    token_ids_T: Tensor,
    table_VD: Tensor | BlockWeight,
    out_TD: Tensor,
    *,
    first: int = 0,
    scale: float = 1.0,
    positions_T: Tensor | None = None,
    position_table_PD: Tensor | None = None,
) -> None:
    """The table's row of each token: ``out[t] = table[token_ids[t] - first] * scale + position_table[positions[t]]``.

    Zeros where the table has no such row, so that the ranks' results add up. Computed in fp32 and rounded once.

    Args:
        token_ids_T: [T] int64.
        table_VD: [V, D] floating, or a weight in blocks, not of a gate, which runs natively whatever the mode.
        out_TD: [T, D] of the table's dtype, or fp32 where the table is bf16; of one in blocks fp32 or bf16.
        first: the token of the table's first row, in a rank that holds a slice of the vocabulary.
        scale: is rounded to the table's dtype first, as transformers does; to bf16 of one in blocks.
        positions_T: [T] int64, each below P (not checked here); given together with ``position_table_PD``.
        position_table_PD: [P, D] of the table's dtype; none beside a table in blocks.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    check_tensor("embed", "token_ids", token_ids_T, (token_ids_T.numel(),), torch.int64)
    if isinstance(table_VD, BlockWeight):
        if positions_T is not None or position_table_PD is not None or table_VD.gate_up:
            raise ValueError("embed: a table in blocks takes no positions, and may not be packed as gate_up")
        check_tensor("embed", "out", out_TD, (token_ids_T.numel(), table_VD.in_features), torch.float32, torch.bfloat16)
        embed_blocks_cpu(token_ids_T, table_VD, out_TD, first, rounded_scale(scale, torch.bfloat16))
        return
    check_tensor("embed", "table", table_VD, (table_VD.shape[0], table_VD.shape[-1]), *FLOATING)
    dtypes = (torch.bfloat16, torch.float32) if table_VD.dtype == torch.bfloat16 else (table_VD.dtype,)
    check_tensor("embed", "out", out_TD, (token_ids_T.numel(), table_VD.shape[1]), *dtypes)
    if (positions_T is None) != (position_table_PD is None):
        raise ValueError("embed: positions and position_table come together")
    if positions_T is not None and position_table_PD is not None:
        check_tensor("embed", "positions", positions_T, (token_ids_T.numel(),), torch.int64)
        shape = (position_table_PD.shape[0], table_VD.shape[1])
        check_tensor("embed", "position_table", position_table_PD, shape, table_VD.dtype)
    if scale != 1.0:
        scale = rounded_scale(scale, table_VD.dtype)
    if runs_triton(table_VD):
        from app.kernels.embed.triton import embed_triton  # only a GPU needs Triton

        embed_triton(token_ids_T, table_VD, out_TD, first, scale, positions_T, position_table_PD)
    elif native("embed", table_VD, out_TD):
        embed_cpu(token_ids_T, table_VD, out_TD, first, scale, positions_T, position_table_PD)
    else:
        embed_reference(token_ids_T, table_VD, out_TD, first, scale, positions_T, position_table_PD)
