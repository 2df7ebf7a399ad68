"""Specification of ``gather_lm_head`` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.int8 import quantize_groups, quantize_tokens
from app.kernels.linear.reference import matmul_fp32
from app.kernels.types import Act, ActFormat, LinearWeight

_VOCAB_CHUNK = 512
"""Weight rows widened to fp32 at a time: they stay in the cache."""


def gather_lm_head_reference(hidden_TD: Tensor, indices_L: Tensor, weight: LinearWeight, out_LV: Tensor) -> None:
    hidden_LD = hidden_TD.index_select(0, indices_L)
    if weight.scale is not None:
        out_LV.copy_(matmul_fp32(_as_input(hidden_LD, weight.act_format), weight))
    elif weight.values.dtype == torch.float32:
        torch.mm(hidden_LD, weight.values.t(), out=out_LV)
    else:
        # A bf16 matmul would round the logits to 8 bits: ties everywhere, and log-probabilities off by 0.1.
        hidden_LD = hidden_LD.float()
        for start in range(0, out_LV.shape[1], _VOCAB_CHUNK):
            rows = slice(start, start + _VOCAB_CHUNK)
            torch.mm(hidden_LD, weight.values[rows].float().t(), out=out_LV[:, rows])
    if weight.bias is not None:
        out_LV.add_(weight.bias)


def _as_input(hidden_LD: Tensor, fmt: ActFormat) -> Act:
    """Hidden states in the format that an int8 weight asks for."""
    match fmt:
        case ActFormat.INT8:
            return Act(*quantize_groups(hidden_LD))
        case ActFormat.INT8_TOKEN:
            return Act(*quantize_tokens(hidden_LD))
        case ActFormat.FLOAT:
            return Act(hidden_LD)
