"""Symmetric int8 quantisation, shared by the reference kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from app.kernels.types import ACT_GROUP, Act, num_groups

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


def quantize_groups(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantises [T, K] with a scale a group of 64 neighbours. Returns int8 [T, K] and fp32 scales [T, groups]."""
    padding = num_groups(x.shape[1]) * ACT_GROUP - x.shape[1]
    values, scale = quantize(F.pad(x, (0, padding)).view(x.shape[0], num_groups(x.shape[1]), ACT_GROUP))
    return values.flatten(1)[:, : x.shape[1]].contiguous(), scale


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantises [T, K] with one scale a row. Returns int8 [T, K] and fp32 scales [T, 1]."""
    values, scale = quantize(x)
    return values, scale.unsqueeze(1)


def store_act(x: Tensor, out: Act) -> None:
    """Writes fp32 ``x`` [T, K] to ``out`` in the format of ``out``, rounding once."""
    if out.scale is None:
        out.values.copy_(x)
        return
    values, scale = quantize_tokens(x) if out.scale.shape[1] == 1 else quantize_groups(x)
    out.values.copy_(values)
    out.scale.copy_(scale)
