"""Binding of the native ``pool``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim, emit
from app.kernels.native.program import dtype_code
from app.kernels.types import PackedSequences


def pool_cpu(hidden_TD: Tensor, sequences: PackedSequences, modes_R: Tensor, out_RD: Tensor) -> None:
    call = Call(
        "pool",
        Dim.ROWS,
        hidden=hidden_TD,
        cu_seqlens=sequences.cu_seqlens,
        modes=modes_R,
        out=out_RD,
        dtype=dtype_code(hidden_TD),
        width=hidden_TD.shape[1],
    )
    emit([call], tokens=hidden_TD.shape[0], rows=sequences.count)
