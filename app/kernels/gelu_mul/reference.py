"""Specification of ``gelu_mul`` in plain torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from app.kernels.int8 import store_act
from app.kernels.types import Act


def gelu_mul_reference(gate_TN: Tensor, x_TN: Tensor, out: Act) -> None:
    store_act(F.gelu(gate_TN.float(), approximate="tanh") * x_TN.float(), out)
