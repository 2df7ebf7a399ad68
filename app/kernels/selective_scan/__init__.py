"""The selective scan of Mamba-2: a recurrence whose state, a matrix a head, lies in pages (arXiv:2405.21060)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from app.kernels.check import FLOATING, check_columns, check_rows, check_tensor
from app.kernels.dispatch import native, runs_triton
from app.kernels.selective_scan.cpu import fits_cpu, selective_scan_cpu
from app.kernels.selective_scan.reference import selective_scan_reference
from app.kernels.types import AttentionMetadata, LayerState

__all__ = ["selective_scan"]

_OP = "selective_scan"


def selective_scan(
    xbc_TC: Tensor,
    dt_TH: Tensor,
    a_log_H: Tensor,
    dt_bias_H: Tensor,
    d_H: Tensor,
    state: LayerState,
    meta: AttentionMetadata,
    out_TN: Tensor,
    *,
    dt_limit: tuple[float, float] = (0.0, math.inf),
) -> None:
    """Each token decays its row's state, adds its input to it along B, and reads it along C.

    For a head with state S, input x, and B and C of the head's group, with
    ``step = clamp(softplus(dt + dt_bias), *dt_limit)`` and ``decay = exp(-exp(a_log) * step)``::

        S = decay * S + B (step * x)^T;  out = S^T C + d * x

    All in fp32. Head h is of group ``h // (H / G)``. Which blocks are read and written is said in
    :class:`~app.kernels.types.LayerState`. A row's result depends on that row alone (but for last bits in plain
    torch); natively a token's result does not depend on where its row begins either, bit for bit.

    Args:
        xbc_TC: [T, H * Dv + 2 * G * Dk] floating: inputs of all heads, B of all groups, C of all groups.
        dt_TH: [T, H] of xbc's dtype; may be columns of a wider tensor.
        a_log_H: [H] fp32.
        dt_bias_H: [H] fp32.
        d_H: [H] fp32.
        state: ``recurrent`` is read and written, [num_blocks, H, Dk, Dv].
        meta: where the rows stand.
        out_TN: [T, H * Dv] of xbc's dtype.
        dt_limit: least and greatest step.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    tokens, channels = xbc_TC.shape
    blocks, heads, k_dim, v_dim = state.recurrent.shape
    groups, rest = divmod(channels - heads * v_dim, 2 * k_dim)
    if rest or groups <= 0 or heads % groups:
        raise ValueError(
            f"{_OP}: xbc has {channels} columns, expected {heads} inputs of {v_dim}, and B and C of {k_dim} for each "
            f"of a number of groups that divides {heads}"
        )
    if not 0.0 <= dt_limit[0] <= dt_limit[1]:
        raise ValueError(f"{_OP}: dt_limit = {dt_limit} is no range of steps")
    check_tensor(_OP, "xbc", xbc_TC, (tokens, channels), *FLOATING)
    check_columns(_OP, "dt", dt_TH, (tokens, heads), xbc_TC.dtype)
    for name, vector in (("a_log", a_log_H), ("dt_bias", dt_bias_H), ("d", d_H)):
        check_tensor(_OP, name, vector, (heads,), torch.float32)
    check_tensor(_OP, "state.recurrent", state.recurrent, (blocks, heads, k_dim, v_dim), torch.float32)
    check_rows(_OP, meta, state.block_size)
    check_tensor(_OP, "out", out_TN, (tokens, heads * v_dim), xbc_TC.dtype)
    arguments = (xbc_TC, dt_TH, a_log_H, dt_bias_H, d_H, state, meta, out_TN, dt_limit)
    if runs_triton(xbc_TC):
        from app.kernels.selective_scan.triton import selective_scan_triton  # only a GPU needs Triton

        selective_scan_triton(*arguments)
    elif native(_OP, xbc_TC) and fits_cpu(k_dim, v_dim):
        selective_scan_cpu(*arguments)
    else:
        selective_scan_reference(*arguments)
