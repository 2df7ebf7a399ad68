"""Logits of the few tokens of a step that need them."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.check import FLOATING, check_tensor
from app.kernels.gather_lm_head.reference import gather_lm_head_reference
from app.kernels.types import LinearWeight

__all__ = ["gather_lm_head"]

_OP = "gather_lm_head"


def gather_lm_head(hidden_TD: Tensor, indices_L: Tensor, weight: LinearWeight, out_LV: Tensor) -> None:
    """``out[l] = hidden[indices[l]] @ weight.T + bias``, never rounded below fp32.

    Args:
        hidden_TD: [T, D] floating, of the weight's dtype unless that is int8 (the gathered rows are quantised then).
        indices_L: [L] int64, each below T (not checked here).
        weight: [V, D].
        out_LV: [L, V] fp32.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    vocab_size, width = weight.values.shape
    dtypes = FLOATING if weight.scale is not None else (weight.values.dtype,)
    check_tensor(_OP, "hidden", hidden_TD, (hidden_TD.shape[0], width), *dtypes)
    check_tensor(_OP, "indices", indices_L, (indices_L.numel(),), torch.int64)
    if weight.scale is not None:
        check_tensor(_OP, "weight", weight.values, (vocab_size, width), torch.int8)
        check_tensor(_OP, "weight.scale", weight.scale, (vocab_size,), torch.float32)
    else:
        check_tensor(_OP, "weight", weight.values, (vocab_size, width), *FLOATING)
    if weight.bias is not None:
        check_tensor(_OP, "weight.bias", weight.bias, (vocab_size,), *FLOATING)
    check_tensor(_OP, "out", out_LV, (indices_L.numel(), vocab_size), torch.float32)
    gather_lm_head_reference(hidden_TD, indices_L, weight, out_LV)
