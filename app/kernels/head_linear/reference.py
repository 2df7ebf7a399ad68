"""Specification of ``head_linear`` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def head_linear_reference(x_THK: Tensor, weight_HKN: Tensor, out_THN: Tensor) -> None:
    product_HTN = torch.bmm(x_THK.float().transpose(0, 1), weight_HKN.float())
    out_THN.copy_(product_HTN.transpose(0, 1))
