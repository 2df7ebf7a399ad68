"""Binding of the native ``expand_rows``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim, emit
from app.kernels.types import AttentionMetadata, StepRows, StepTokens


def expand_rows_cpu(
    rows: StepRows,
    tables_SW: Tensor,
    last_token_S: Tensor,
    out: StepTokens | None,
    meta: AttentionMetadata,
    block_size: int,
) -> None:
    call = Call(
        "expand_rows",
        Dim.ROWS,
        slots=rows.slots,
        carried=rows.carried,
        table_lens=rows.table_lens,
        new_block_loc=rows.new_block_loc,
        logit_start_loc=rows.logit_start_loc,
        feed=rows.feed,
        query_start_loc=meta.query_start_loc,
        seq_lens=meta.seq_lens,
        last_token=last_token_S,
        tables=tables_SW,
        token_ids=out.token_ids if out else None,
        positions=out.positions if out else None,
        logit_indices=out.logit_indices if out else None,
        block_tables=meta.block_tables,
        slot_mapping=meta.slot_mapping,
        table_width=tables_SW.shape[1],
        block_size=block_size,
    )
    emit([call], rows=rows.slots.numel())
