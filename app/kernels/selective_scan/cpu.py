"""Binding of the native ``selective_scan``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim, emit, fall_back
from app.kernels.native.program import dtype_code
from app.kernels.types import AttentionMetadata, LayerState

_MAX_DIM = 256
"""Dk and Dv, at most: a head's state and some of its tokens fit a thread's scratch."""


def fits_cpu(k_dim: int, v_dim: int) -> bool:
    """Whether the native kernel takes heads of these widths. Raises as :func:`fall_back` where not."""
    fits = k_dim <= _MAX_DIM and v_dim <= _MAX_DIM and not v_dim % 16
    if not fits:
        fall_back("selective_scan", f"a head's state is [{k_dim}, {v_dim}]")
    return fits


def selective_scan_cpu(
    xbc_TC: Tensor,
    dt_TH: Tensor,
    a_log_H: Tensor,
    dt_bias_H: Tensor,
    d_H: Tensor,
    state: LayerState,
    meta: AttentionMetadata,
    out_TN: Tensor,
    dt_limit: tuple[float, float],
) -> None:
    _, heads, k_dim, v_dim = state.recurrent.shape
    call = Call(
        "selective_scan",
        Dim.ROWS,
        xbc=xbc_TC,
        dt=dt_TH,
        a_log=a_log_H,
        dt_bias=dt_bias_H,
        d=d_H,
        query_start_loc=meta.query_start_loc,
        seq_lens=meta.seq_lens,
        block_tables=meta.block_tables,
        state=state.recurrent,
        out=out_TN,
        dtype=dtype_code(xbc_TC),
        groups=(xbc_TC.shape[1] - heads * v_dim) // (2 * k_dim),
        heads=heads,
        k_dim=k_dim,
        v_dim=v_dim,
        dt_stride=dt_TH.stride(0),
        block_size=state.block_size,
        block_table_stride=meta.block_tables.shape[1],
        least_step=dt_limit[0],
        greatest_step=dt_limit[1],
    )
    emit([call], tokens=xbc_TC.shape[0], rows=meta.seq_lens.numel())
