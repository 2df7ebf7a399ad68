"""Short causal convolution over each row's tokens, channel by channel, with SiLU; its state lies in pages."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.causal_conv.cpu import causal_conv_cpu, fits_cpu
from app.kernels.causal_conv.reference import causal_conv_reference
from app.kernels.check import FLOATING, check_columns, check_rows, check_tensor
from app.kernels.dispatch import native, runs_triton
from app.kernels.types import AttentionMetadata, LayerState

__all__ = ["causal_conv"]

_OP = "causal_conv"


def causal_conv(
    x_TC: Tensor,
    weight_KC: Tensor,
    state: LayerState,
    meta: AttentionMetadata,
    out_TC: Tensor,
    *,
    bias_C: Tensor | None = None,
) -> None:
    """``out[t, c] = silu(sum_k weight[k, c] * x[t - K + 1 + k, c] + bias[c])`` over a row's tokens, in fp32.

    The inputs ahead of the row's first token are its state: the last K - 1 ones, zeros where the sequence begins. They
    are kept unrounded, so that a token's result does not depend on where its row begins (but for the last bit in plain
    torch). Which blocks are read and written is said in :class:`~app.kernels.types.LayerState`.

    Args:
        x_TC: [T, C] floating; may be columns of a wider tensor.
        weight_KC: [K, C] fp32, K at least 2; the last tap is the token's own.
        state: ``conv`` is read and written, [num_blocks, K - 1, C] of x's dtype.
        meta: where the rows stand.
        out_TC: [T, C] of x's dtype, apart from x.
        bias_C: [C] fp32; None for zeros.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    tokens, channels = x_TC.shape
    taps = weight_KC.shape[0]
    check_columns(_OP, "x", x_TC, (tokens, channels), *FLOATING)
    if taps < 2:
        raise ValueError(f"{_OP}: weight has {taps} taps, expected at least 2")
    check_tensor(_OP, "weight", weight_KC, (taps, channels), torch.float32)
    if bias_C is not None:
        check_tensor(_OP, "bias", bias_C, (channels,), torch.float32)
    check_tensor(_OP, "state.conv", state.conv, (state.conv.shape[0], taps - 1, channels), x_TC.dtype)
    check_rows(_OP, meta, state.block_size)
    check_tensor(_OP, "out", out_TC, (tokens, channels), x_TC.dtype)
    if runs_triton(x_TC):
        from app.kernels.causal_conv.triton import causal_conv_triton  # only a GPU needs Triton

        causal_conv_triton(x_TC, weight_KC, state, meta, out_TC, bias_C)
    elif native(_OP, x_TC, state.conv) and fits_cpu(taps):
        causal_conv_cpu(x_TC, weight_KC, state, meta, out_TC, bias_C)
    else:
        causal_conv_reference(x_TC, weight_KC, state, meta, out_TC, bias_C)
