"""One vector a sequence, from the hidden states of its tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.check import FLOATING, check_tensor
from app.kernels.dispatch import native, runs_triton
from app.kernels.pool.cpu import pool_cpu
from app.kernels.pool.mode import Mode
from app.kernels.pool.reference import pool_reference
from app.kernels.types import PackedSequences

__all__ = ["Mode", "pool"]

_OP = "pool"


def pool(hidden_TD: Tensor, sequences: PackedSequences, modes_R: Tensor, out_RD: Tensor) -> None:
    """``out[r]`` = the mean, the first or the last of sequence r's hidden states, scaled to length 1 if asked.

    Computed in fp32. A vector shorter than 1e-12 is divided by that.

    Args:
        hidden_TD: [T, D] floating.
        sequences: R of them, none empty.
        modes_R: [R] int32, a :class:`Mode` each.
        out_RD: [R, D] fp32.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    check_tensor(_OP, "hidden", hidden_TD, (hidden_TD.shape[0], hidden_TD.shape[-1]), *FLOATING)
    rows = sequences.count
    check_tensor(_OP, "sequences.cu_seqlens", sequences.cu_seqlens, (rows + 1,), torch.int32)
    check_tensor(_OP, "modes", modes_R, (rows,), torch.int32)
    check_tensor(_OP, "out", out_RD, (rows, hidden_TD.shape[1]), torch.float32)
    if runs_triton(hidden_TD):
        from app.kernels.pool.triton import pool_triton  # only a GPU needs Triton

        pool_triton(hidden_TD, sequences, modes_R, out_RD)
    elif native(_OP, hidden_TD):
        pool_cpu(hidden_TD, sequences, modes_R, out_RD)
    else:
        pool_reference(hidden_TD, sequences, modes_R, out_RD)
