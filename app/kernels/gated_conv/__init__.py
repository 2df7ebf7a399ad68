"""Short causal convolution over each row's tokens between two gates, channel by channel; its state lies in pages."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.check import FLOATING, check_act, check_rows, check_tensor, check_token_scale, scaled_by_groups
from app.kernels.dispatch import native, runs_triton
from app.kernels.gated_conv.cpu import fits_cpu, gated_conv_cpu
from app.kernels.gated_conv.reference import gated_conv_reference
from app.kernels.types import Act, AttentionMetadata, LayerState

__all__ = ["gated_conv"]

_OP = "gated_conv"


def gated_conv(
    projected_TN: Tensor,
    weight_KC: Tensor,
    state: LayerState,
    meta: AttentionMetadata,
    out: Act,
    *,
    bias_C: Tensor | None = None,
) -> None:
    """``out[t] = g[t] * (sum_k weight[k] * y[t - K + 1 + k] + bias)`` with ``y = b * x``, the gated short convolution
    of LFM2 (Liquid AI 2025, arXiv:2511.23404), without an activation.

    ``y`` is rounded to its inputs' dtype, all else is computed in fp32. The ``y`` ahead of the row's first token are
    its state: the last K - 1 ones, zeros where the sequence begins; a token's result does not depend on where its row
    begins. Which blocks are read and written is said in :class:`~app.kernels.types.LayerState`.

    An int8 ``out`` is quantised by groups or, with one scale a token, by tokens (all that Triton knows; not native).

    Args:
        projected_TN: [T, 3C] floating: b, g and x side by side.
        weight_KC: [K, C] fp32, K at least 2; the last tap is the token's own.
        state: ``conv`` is read and written, [num_blocks, K - 1, C] of ``projected``'s dtype.
        meta: where the rows stand.
        out: [T, C].
        bias_C: [C] fp32; None for none.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    tokens, (taps, channels) = projected_TN.shape[0], weight_KC.shape
    check_tensor(_OP, "projected", projected_TN, (tokens, 3 * channels), *FLOATING)
    if taps < 2:
        raise ValueError(f"{_OP}: weight has {taps} taps, expected at least 2")
    check_tensor(_OP, "weight", weight_KC, (taps, channels), torch.float32)
    if bias_C is not None:
        check_tensor(_OP, "bias", bias_C, (channels,), torch.float32)
    check_tensor(_OP, "state.conv", state.conv, (state.conv.shape[0], taps - 1, channels), projected_TN.dtype)
    check_rows(_OP, meta, state.block_size)
    check_act(_OP, "out", out, (tokens, channels))
    if runs_triton(projected_TN):
        check_token_scale(_OP, out)
        from app.kernels.gated_conv.triton import gated_conv_triton  # only a GPU needs Triton

        gated_conv_triton(projected_TN, weight_KC, state, meta, out, bias_C)
    elif scaled_by_groups(out) and native(_OP, projected_TN, state.conv, out.values) and fits_cpu(taps):
        gated_conv_cpu(projected_TN, weight_KC, state, meta, out, bias_C)
    else:
        gated_conv_reference(projected_TN, weight_KC, state, meta, out, bias_C)
