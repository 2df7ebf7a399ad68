"""Specification of ``sigmoid_mul`` in plain torch."""

from __future__ import annotations

from torch import Tensor

from app.kernels.int8 import store_act
from app.kernels.types import Act


def sigmoid_mul_reference(x_TN: Tensor, gate_TN: Tensor, out: Act) -> None:
    store_act(x_TN.float() * gate_TN.float().sigmoid(), out)
