"""Binding of the native ``causal_conv``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim, emit, fall_back
from app.kernels.native.program import dtype_code
from app.kernels.types import AttentionMetadata, LayerState

_MAX_TAPS = 16
"""MAX_TAPS of cpu.cpp."""


def fits_cpu(taps: int) -> bool:
    """Whether the native kernel takes a convolution of that many taps. Raises as :func:`fall_back` where not."""
    if taps > _MAX_TAPS:
        fall_back("causal_conv", f"there are {taps} taps")
    return taps <= _MAX_TAPS


def causal_conv_cpu(
    x_TC: Tensor,
    weight_KC: Tensor,
    state: LayerState,
    meta: AttentionMetadata,
    out_TC: Tensor,
    bias_C: Tensor | None,
) -> None:
    call = Call(
        "causal_conv",
        Dim.ROWS,
        x=x_TC,
        weight=weight_KC,
        query_start_loc=meta.query_start_loc,
        seq_lens=meta.seq_lens,
        block_tables=meta.block_tables,
        state=state.conv,
        out=out_TC,
        bias=bias_C,
        dtype=dtype_code(x_TC),
        channels=x_TC.shape[1],
        taps=weight_KC.shape[0],
        x_stride=x_TC.stride(0),
        block_size=state.block_size,
        block_table_stride=meta.block_tables.shape[1],
    )
    emit([call], tokens=x_TC.shape[0], rows=meta.seq_lens.numel())
