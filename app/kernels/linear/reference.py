"""Specification of ``linear`` in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from app.kernels.activation import Activation
from app.kernels.int8 import store_act
from app.kernels.lora.reference import delta_reference
from app.kernels.lora.step import LowRank
from app.kernels.types import ACT_GROUP, Act, LinearWeight


def linear_reference(
    x: Act,
    weight: LinearWeight,
    out: Act,
    residual: Tensor | None,
    activation: Activation,
    low_rank: LowRank | None = None,
) -> None:
    if low_rank is not None and bool((low_rank.slots < 0).all()):
        low_rank = None
    plain = weight.scale is None and activation is Activation.NONE and low_rank is None
    if plain and _matmul_into(x.values, weight, out, residual):
        return
    if weight.scale is None and out.values.dtype is torch.float32:
        # A product of bf16 would be rounded to bf16 before it is widened.
        y_TN = torch.mm(x.values.float(), weight.values.float().t())
    else:
        y_TN = matmul_fp32(x, weight)
    if weight.bias is not None:
        y_TN = y_TN + weight.bias.float()
    if low_rank is not None:
        y_TN = y_TN + delta_reference(x, low_rank)
    if activation.gated:
        gate, up = y_TN.chunk(2, dim=-1)
        y_TN = _activated(gate, activation) * up
    else:
        y_TN = _activated(y_TN, activation)
    if residual is not None:
        y_TN = y_TN + residual.float()
    store_act(y_TN, out)


def _activated(x: Tensor, activation: Activation) -> Tensor:
    match activation.function:
        case "silu":
            return F.silu(x)
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "relu2":
            return F.relu(x).square()
        case _:
            return x


def _matmul_into(x_TK: Tensor, weight: LinearWeight, out: Act, residual: Tensor | None) -> bool:
    """The layers that are one library call straight into ``out``; False for the others."""
    addend = residual if residual is not None else weight.bias
    if out.values.dtype != x_TK.dtype or (residual is not None and weight.bias is not None):
        return False
    if addend is None:
        torch.mm(x_TK, weight.values.t(), out=out.values)
    elif addend.dtype == torch.float32 == x_TK.dtype:
        torch.addmm(addend, x_TK, weight.values.t(), out=out.values)
    else:
        return False
    return True


def int8_product(x_TK: Tensor, weight_NK: Tensor) -> Tensor:
    """``x @ weight.T`` of int8 values in fp32, from exact sums (which have 31 bits at most)."""
    return torch.mm(x_TK.double(), weight_NK.double().t()).float()


def matmul_fp32(x: Act, weight: LinearWeight) -> Tensor:
    """``x @ weight.T`` in fp32, scales applied, bias not."""
    if weight.scale is None:
        return torch.mm(x.values, weight.values.t()).float()
    if x.scale is None:
        return torch.mm(x.values.float(), weight.values.float().t()) * weight.scale
    if x.scale.shape[1] == 1:
        return int8_product(x.values, weight.values) * x.scale * weight.scale
    groups = zip(torch.split(x.values, ACT_GROUP, 1), torch.split(weight.values, ACT_GROUP, 1), strict=True)
    y_TN = torch.zeros(x.values.shape[0], weight.values.shape[0], device=x.values.device)
    for group, (x_TG, weight_NG) in enumerate(groups):
        # Exact: the sums of a group have 21 bits at most.
        y_TN += torch.mm(x_TG.float(), weight_NG.float().t()) * x.scale[:, group, None]
    return y_TN * weight.scale[None, :]
