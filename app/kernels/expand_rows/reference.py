"""Specification of ``expand_rows`` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.types import AttentionMetadata, StepRows, StepTokens


def expand_rows_reference(
    rows: StepRows,
    tables_SW: Tensor,
    last_token_S: Tensor,
    out: StepTokens | None,
    meta: AttentionMetadata,
    block_size: int,
) -> None:
    starts_R, counts_R = meta.query_start_loc[:-1].long(), meta.query_start_loc.diff()
    # New blocks, to the end of their slots' tables.
    fresh_R = rows.new_block_loc.diff()
    row_N, nth_N = _spread(fresh_R)
    tables_SW[rows.slots[row_N].long(), (rows.table_lens[row_N] + nth_N).long()] = rows.feed[
        (rows.new_block_loc[row_N] + nth_N).long()
    ]
    row_M, nth_M = _spread((meta.seq_lens + block_size - 1) // block_size)
    meta.block_tables[row_M, nth_M] = tables_SW[rows.slots[row_M].long(), nth_M]

    row_T, nth_T = _spread(counts_R)
    positions_T = (meta.seq_lens - counts_R)[row_T] + nth_T
    blocks_T = tables_SW[rows.slots[row_T].long(), positions_T // block_size]
    meta.slot_mapping.copy_(blocks_T.long() * block_size + positions_T % block_size)
    if out is None:
        return
    out.positions.copy_(positions_T)
    given_T = rows.feed[: out.token_ids.numel()].long()
    sampled_T = last_token_S[rows.slots[row_T].long()]
    out.token_ids.copy_(torch.where(rows.carried[row_T] != 0, sampled_T, given_T))

    wanted_R = rows.logit_start_loc.diff()
    row_L, nth_L = _spread(wanted_R)
    out.logit_indices.copy_((starts_R + counts_R - wanted_R)[row_L] + nth_L)


def _spread(counts_R: Tensor) -> tuple[Tensor, Tensor]:
    """(row, number within the row) of each of the rows' items, of which row r has ``counts[r]``."""
    row_N = torch.arange(counts_R.numel(), device=counts_R.device).repeat_interleave(counts_R.long())
    before_R = counts_R.cumsum(0) - counts_R
    return row_N, torch.arange(row_N.numel(), device=counts_R.device) - before_R[row_N]
