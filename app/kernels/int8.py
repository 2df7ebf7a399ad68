"""Symmetric int8 quantisation, shared by the reference kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.types import Act

INT8_MAX = 127


def quantize(x: Tensor, scale_dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Quantises along the last dimension: ``scale = max|x| / 127``, values rounded half to even.

    Returns int8 values of x's shape and the scale of ``scale_dtype`` without the last dimension. The values are
    those of the *rounded* scale. An all-zero vector has scale 0 and values 0; a vector with a NaN or an infinity
    has a non-finite scale, so that it stays visible after dequantisation.
    """
    x = x.float()
    scale = (x.abs().amax(dim=-1) / INT8_MAX).to(scale_dtype)
    divisor = torch.where(scale == 0, 1.0, scale.float()).unsqueeze(-1)
    return (x / divisor).round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scale


def store_act(x: Tensor, out: Act) -> None:
    """Writes fp32 ``x`` [T, K] to ``out`` in the format of ``out``, rounding once."""
    if out.scale is None:
        out.values.copy_(x)
        return
    values, scale = quantize(x)
    out.values.copy_(values)
    out.scale.copy_(scale)
