"""Logits of the few tokens of a step that need them."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.check import FLOATING, check_act, check_tensor, check_token_scale
from app.kernels.dispatch import fall_back, runs_triton
from app.kernels.gather_lm_head.cpu import gather_lm_head_cpu
from app.kernels.gather_lm_head.reference import gather_lm_head_reference
from app.kernels.types import Act, ActFormat, NativeWeight, Weight

__all__ = ["gather_lm_head", "needs_scratch", "scratch_dtype"]

_OP = "gather_lm_head"


def needs_scratch(weight: Weight) -> bool:
    """Whether :func:`gather_lm_head` needs room for the rows that it gathers for such a head."""
    if isinstance(weight, NativeWeight):
        return True
    return weight.act_format is not ActFormat.FLOAT and runs_triton(weight.values)


def scratch_dtype(weight: Weight, dtype: torch.dtype) -> torch.dtype | None:
    """Dtype of the rows that :func:`gather_lm_head` gathers of hidden states of ``dtype``, where it does not quantise
    them; None where it needs no scratch for them."""
    if not needs_scratch(weight):
        return None
    return weight.input_dtype if isinstance(weight, NativeWeight) else dtype


def gather_lm_head(
    hidden_TD: Tensor,
    indices_L: Tensor,
    weight: Weight,
    out_LV: Tensor,
    *,
    scratch: Act | None = None,
) -> None:
    """``out[l] = hidden[indices[l]] @ weight.T + bias``, never rounded below fp32.

    Args:
        hidden_TD: [T, D] floating, of the weight's dtype unless that is int8 (the gathered rows are quantised then).
        indices_L: [L] int64, each below T (not checked here).
        weight: [V, D].
            A packed weight runs natively, whatever the mode, over fp32 or bf16 hidden states.
        out_LV: [L, V] fp32.
        scratch: [L, D] in the format that the weight asks for (of a packed weight's dtype), for the gathered rows; None
            where it :func:`needs_scratch` not.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    if isinstance(weight, NativeWeight):
        _gather_lm_head_packed(hidden_TD, indices_L, weight, out_LV, scratch)
        return
    rows = indices_L.numel()
    vocab_size, width = weight.values.shape
    dtypes = FLOATING if weight.scale is not None else (weight.values.dtype,)
    check_tensor(_OP, "hidden", hidden_TD, (hidden_TD.shape[0], width), *dtypes)
    check_tensor(_OP, "indices", indices_L, (rows,), torch.int64)
    if weight.scale is not None:
        check_tensor(_OP, "weight", weight.values, (vocab_size, width), torch.int8)
        check_tensor(_OP, "weight.scale", weight.scale, (vocab_size,), torch.float32)
    else:
        check_tensor(_OP, "weight", weight.values, (vocab_size, width), *FLOATING)
    if weight.bias is not None:
        check_tensor(_OP, "weight.bias", weight.bias, (vocab_size,), *FLOATING)
    check_tensor(_OP, "out", out_LV, (rows, vocab_size), torch.float32)
    if runs_triton(hidden_TD):
        if (scratch is not None) != needs_scratch(weight):
            raise ValueError(f"{_OP}: an int8 head needs a scratch, no other takes one")
        if scratch is not None:
            check_act(_OP, "scratch", scratch, (rows, width))
            check_token_scale(_OP, scratch)
        from app.kernels.gather_lm_head.triton import gather_lm_head_triton  # only a GPU needs Triton

        gather_lm_head_triton(hidden_TD, indices_L, weight, out_LV, scratch)
        return
    fall_back(_OP, "its weight is not packed")
    gather_lm_head_reference(hidden_TD, indices_L, weight, out_LV)


def _gather_lm_head_packed(
    hidden_TD: Tensor, indices_L: Tensor, weight: NativeWeight, out_LV: Tensor, scratch: Act | None
) -> None:
    rows, width = indices_L.numel(), weight.in_features
    check_tensor(_OP, "hidden", hidden_TD, (hidden_TD.shape[0], width), torch.float32, torch.bfloat16)
    check_tensor(_OP, "indices", indices_L, (rows,), torch.int64)
    check_tensor(_OP, "out", out_LV, (rows, weight.out_features), torch.float32)
    if scratch is None or weight.gate_up:
        raise ValueError(f"{_OP}: a packed weight needs a scratch, and may not be packed as gate_up")
    check_tensor(_OP, "scratch", scratch.values, (rows, width), weight.input_dtype)
    check_act(_OP, "scratch", scratch, (rows, width))
    gather_lm_head_cpu(hidden_TD, indices_L, weight, out_LV, scratch)
