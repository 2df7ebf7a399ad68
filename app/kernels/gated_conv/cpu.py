"""Binding of the native ``gated_conv``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim, emit, fall_back
from app.kernels.native.program import dtype_code
from app.kernels.types import Act, AttentionMetadata, LayerState

_MAX_TAPS = 16
"""MAX_TAPS of cpu.cpp."""


def fits_cpu(taps: int) -> bool:
    """Whether the native kernel takes a convolution of that many taps. Raises as :func:`fall_back` where not."""
    if taps > _MAX_TAPS:
        fall_back("gated_conv", f"there are {taps} taps")
    return taps <= _MAX_TAPS


def gated_conv_cpu(
    projected_TN: Tensor,
    weight_KC: Tensor,
    state: LayerState,
    meta: AttentionMetadata,
    out: Act,
    bias_C: Tensor | None,
) -> None:
    taps, channels = weight_KC.shape
    call = Call(
        "gated_conv",
        Dim.ROWS,
        projected=projected_TN,
        weight=weight_KC,
        bias=bias_C,
        query_start_loc=meta.query_start_loc,
        seq_lens=meta.seq_lens,
        block_tables=meta.block_tables,
        state=state.conv,
        out=out.values,
        out_scale=out.scale,
        dtype=dtype_code(projected_TN),
        out_dtype=dtype_code(out.values),
        channels=channels,
        taps=taps,
        block_size=state.block_size,
        block_table_stride=meta.block_tables.shape[1],
    )
    emit([call], tokens=projected_TN.shape[0], rows=meta.seq_lens.numel())
