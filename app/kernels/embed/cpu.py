"""Binding of the native ``embed``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim, emit
from app.kernels.native.program import dtype_code
from app.kernels.types import BlockWeight


def embed_cpu(
    token_ids_T: Tensor,
    table_VD: Tensor,
    out_TD: Tensor,
    first: int,
    scale: float,
    positions_T: Tensor | None,
    position_table_PD: Tensor | None,
) -> None:
    call = Call(
        "embed",
        Dim.TOKENS,
        token_ids=token_ids_T,
        table=table_VD,
        positions=positions_T,
        position_table=position_table_PD,
        out=out_TD,
        table_dtype=dtype_code(table_VD),
        out_dtype=dtype_code(out_TD),
        width=table_VD.shape[1],
        first=first,
        rows=table_VD.shape[0],
        scale=scale,
    )
    emit([call], tokens=token_ids_T.numel())


def embed_blocks_cpu(token_ids_T: Tensor, table: BlockWeight, out_TD: Tensor, first: int, scale: float) -> None:
    call = Call(
        "embed_blocks",
        Dim.TOKENS,
        token_ids=token_ids_T,
        weight=table.data,
        panels=table.panels,
        out=out_TD,
        out_dtype=dtype_code(out_TD),
        width=table.in_features,
        first=first,
        rows=table.out_features,
        scale=scale,
    )
    emit([call], tokens=token_ids_T.numel())
