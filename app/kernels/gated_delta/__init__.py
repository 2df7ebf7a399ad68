"""The gated delta rule: linear attention whose state, a matrix a head, lies in pages (arXiv:2412.06464)."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.check import FLOATING, check_columns, check_rows, check_tensor
from app.kernels.dispatch import native, runs_triton
from app.kernels.gated_delta.cpu import fits_cpu, gated_delta_cpu
from app.kernels.gated_delta.reference import gated_delta_reference
from app.kernels.types import AttentionMetadata, LayerState

__all__ = ["gated_delta"]

_OP = "gated_delta"


def gated_delta(
    qkv_TC: Tensor,
    b_TH: Tensor,
    a_TH: Tensor,
    a_log_H: Tensor,
    dt_bias_H: Tensor,
    state: LayerState,
    meta: AttentionMetadata,
    out_TN: Tensor,
) -> None:
    """Each token decays its row's state, corrects what the state answers to its key, and reads it by its query.

    For a value head with state S, key k and query q (both divided by ``sqrt(|x|² + 1e-6)``, q by ``sqrt(Dk)`` too) and
    value v, with ``beta = sigmoid(b)`` and ``decay = exp(-exp(a_log) * softplus(a + dt_bias))``::

        S = decay * S;  S = S + k (beta * (v - S^T k))^T;  out = S^T q

    All in fp32. Value head h has key head ``h // (Hv / Hk)``. Which blocks are read and written is said in
    :class:`~app.kernels.types.LayerState`. A row's result depends on that row alone (but for last bits in plain
    torch); natively a token's result does not depend on where its row begins either, bit for bit.

    Args:
        qkv_TC: [T, 2 * Hk * Dk + Hv * Dv] floating: queries, keys, values.
        b_TH: [T, Hv] of qkv's dtype; may be columns of a wider tensor.
        a_TH: [T, Hv] of qkv's dtype, its rows as far apart as those of ``b_TH``.
        a_log_H: [Hv] fp32.
        dt_bias_H: [Hv] fp32.
        state: ``recurrent`` is read and written, [num_blocks, Hv, Dk, Dv].
        meta: where the rows stand.
        out_TN: [T, Hv * Dv] of qkv's dtype.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    tokens, channels = qkv_TC.shape
    blocks, heads, k_dim, v_dim = state.recurrent.shape
    key_heads, rest = divmod(channels - heads * v_dim, 2 * k_dim)
    if rest or key_heads <= 0 or heads % key_heads:
        raise ValueError(
            f"{_OP}: qkv has {channels} columns, expected {heads} values of {v_dim} and as many queries as keys of "
            f"{k_dim}, a divisor of {heads}"
        )
    check_tensor(_OP, "qkv", qkv_TC, (tokens, channels), *FLOATING)
    for name, gate in (("b", b_TH), ("a", a_TH)):
        check_columns(_OP, name, gate, (tokens, heads), qkv_TC.dtype)
    if b_TH.stride(0) != a_TH.stride(0):
        raise ValueError(f"{_OP}: rows of b are {b_TH.stride(0)} elements apart, those of a {a_TH.stride(0)}")
    check_tensor(_OP, "a_log", a_log_H, (heads,), torch.float32)
    check_tensor(_OP, "dt_bias", dt_bias_H, (heads,), torch.float32)
    check_tensor(_OP, "state.recurrent", state.recurrent, (blocks, heads, k_dim, v_dim), torch.float32)
    check_rows(_OP, meta, state.block_size)
    check_tensor(_OP, "out", out_TN, (tokens, heads * v_dim), qkv_TC.dtype)
    arguments = (qkv_TC, b_TH, a_TH, a_log_H, dt_bias_H, state, meta, out_TN)
    if runs_triton(qkv_TC):
        from app.kernels.gated_delta.triton import gated_delta_triton  # only a GPU needs Triton

        gated_delta_triton(*arguments)
    elif native(_OP, qkv_TC) and fits_cpu(k_dim, v_dim):
        gated_delta_cpu(*arguments)
    else:
        gated_delta_reference(*arguments)
