"""Binding of the native ``gather_lm_head``: gathered (and quantised) rows, then a linear layer over them."""

from __future__ import annotations

from torch import Tensor

from app.kernels.activation import Activation
from app.kernels.dispatch import Call, Dim, emit
from app.kernels.linear.cpu import linear_call
from app.kernels.native.program import dtype_code
from app.kernels.quantize.cpu import quantize_call
from app.kernels.types import Act, NativeWeight


def gather_lm_head_cpu(
    hidden_TD: Tensor, indices_L: Tensor, weight: NativeWeight, out_LV: Tensor, scratch: Act
) -> None:
    if scratch.scale is not None:
        gathered = quantize_call(hidden_TD, scratch, Dim.LOGITS, indices_L)
    else:
        gathered = Call(
            "gather",
            Dim.LOGITS,
            x=hidden_TD,
            indices=indices_L,
            out=scratch.values,
            dtype=dtype_code(hidden_TD),
            out_dtype=dtype_code(scratch.values),
            width=hidden_TD.shape[1],
        )
    product = linear_call(scratch, weight, out_LV, None, Activation.NONE, Dim.LOGITS)
    emit([gathered, product], logits=indices_L.numel())
