"""Binding of the native ``gated_delta``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim, emit, fall_back
from app.kernels.native.program import dtype_code
from app.kernels.types import AttentionMetadata, LayerState

_MAX_DIM = 256
"""Width of keys and values, at most: a head's state and some of its tokens fit a thread's scratch."""


def fits_cpu(k_dim: int, v_dim: int) -> bool:
    """Whether the native kernel takes heads of these widths. Raises as :func:`fall_back` where not."""
    fits = k_dim <= _MAX_DIM and v_dim <= _MAX_DIM and not v_dim % 16
    if not fits:
        fall_back("gated_delta", f"a head's state is [{k_dim}, {v_dim}]")
    return fits


def gated_delta_cpu(
    qkv_TC: Tensor,
    b_TH: Tensor,
    a_TH: Tensor,
    a_log_H: Tensor,
    dt_bias_H: Tensor,
    state: LayerState,
    meta: AttentionMetadata,
    out_TN: Tensor,
) -> None:
    _, heads, k_dim, v_dim = state.recurrent.shape
    call = Call(
        "gated_delta",
        Dim.ROWS,
        qkv=qkv_TC,
        b=b_TH,
        a=a_TH,
        a_log=a_log_H,
        dt_bias=dt_bias_H,
        query_start_loc=meta.query_start_loc,
        seq_lens=meta.seq_lens,
        block_tables=meta.block_tables,
        state=state.recurrent,
        out=out_TN,
        dtype=dtype_code(qkv_TC),
        k_heads=(qkv_TC.shape[1] - heads * v_dim) // (2 * k_dim),
        v_heads=heads,
        k_dim=k_dim,
        v_dim=v_dim,
        gate_stride=b_TH.stride(0),
        block_size=state.block_size,
        block_table_stride=meta.block_tables.shape[1],
    )
    emit([call], tokens=qkv_TC.shape[0], rows=meta.seq_lens.numel())
