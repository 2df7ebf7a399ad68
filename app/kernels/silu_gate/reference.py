"""Specification of ``silu_gate`` in plain torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from app.kernels.int8 import store_act
from app.kernels.types import Act


def silu_gate_reference(
    x_TN: Tensor, gate_TN: Tensor, out: Act, weight_N: Tensor | None, groups: int, eps: float
) -> None:
    y_TN = x_TN.float() * F.silu(gate_TN.float())
    if weight_N is not None:
        y_TGE = y_TN.view(y_TN.shape[0], groups, y_TN.shape[1] // groups)
        y_TGE.mul_(y_TGE.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_())
        y_TN.mul_(weight_N.float())
    store_act(y_TN, out)
