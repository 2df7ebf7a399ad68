"""From what the host says of a step's rows to what the model's kernels read: tokens, positions, slots, block tables."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.check import check_tensor
from app.kernels.dispatch import native, runs_triton
from app.kernels.expand_rows.cpu import expand_rows_cpu
from app.kernels.expand_rows.reference import expand_rows_reference
from app.kernels.types import AttentionMetadata, StepRows, StepTokens

__all__ = ["expand_rows"]


def expand_rows(
    rows: StepRows,
    tables_SW: Tensor,
    last_token_S: Tensor,
    out: StepTokens | None,
    meta: AttentionMetadata,
    *,
    block_size: int,
) -> None:
    """Fills ``out`` and the metadata's ``block_tables`` and ``slot_mapping``, and adds the rows' new blocks to the
    tables of their slots. A KV cache group takes a call of its own.

    The metadata's ``query_start_loc`` and ``seq_lens`` are read: row r's ``n`` tokens stand at positions
    ``seq_lens[r] - n`` on. Of its row in ``block_tables`` only the blocks of its sequence are written.

    Args:
        rows: R of them; see :class:`~app.kernels.types.StepRows`.
        tables_SW: [S, W] int32, blocks of every slot's sequence.
        last_token_S: [S] int64, the token that each slot sampled last.
        out: None where a call for another group has filled it.
        meta: ``block_tables`` [R, W].
        block_size: tokens of a block.

    Raises:
        ValueError: an argument's shape or dtype does not fit. Numbers within the arguments are not checked.
    """
    count, width = rows.slots.numel(), tables_SW.shape[-1]
    for name, vector, length in (
        ("slots", rows.slots, count),
        ("carried", rows.carried, count),
        ("table_lens", rows.table_lens, count),
        ("new_block_loc", rows.new_block_loc, count + 1),
        ("logit_start_loc", rows.logit_start_loc, count + 1),
        ("feed", rows.feed, rows.feed.numel()),
        ("query_start_loc", meta.query_start_loc, count + 1),
        ("seq_lens", meta.seq_lens, count),
    ):
        check_tensor("expand_rows", name, vector, (length,), torch.int32)
    check_tensor("expand_rows", "tables", tables_SW, (tables_SW.shape[0], width), torch.int32)
    check_tensor("expand_rows", "block_tables", meta.block_tables, (count, width), torch.int32)
    tokens = meta.slot_mapping.numel()
    check_tensor("expand_rows", "slots", meta.slot_mapping, (tokens,), torch.int64)
    if out is not None:
        check_tensor("expand_rows", "token_ids", out.token_ids, (tokens,), torch.int64)
        check_tensor("expand_rows", "positions", out.positions, (tokens,), torch.int64)
        check_tensor("expand_rows", "logit_indices", out.logit_indices, (out.logit_indices.numel(),), torch.int64)
    check_tensor("expand_rows", "last_token", last_token_S, (tables_SW.shape[0],), torch.int64)
    if runs_triton(tables_SW):
        from app.kernels.expand_rows.triton import expand_rows_triton  # only a GPU needs Triton

        expand_rows_triton(rows, tables_SW, last_token_S, out, meta, block_size)
    elif native("expand_rows", tables_SW):
        expand_rows_cpu(rows, tables_SW, last_token_S, out, meta, block_size)
    else:
        expand_rows_reference(rows, tables_SW, last_token_S, out, meta, block_size)
