"""Specification of ``gated_norm`` in plain torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from app.kernels.int8 import store_act
from app.kernels.types import Act


def gated_norm_reference(x_TN: Tensor, weight_E: Tensor, gate_TN: Tensor, eps: float, out: Act) -> None:
    tokens, width = x_TN.shape[0], weight_E.numel()
    x_THE = x_TN.float().view(tokens, x_TN.shape[1] // width, width)
    inverse_rms_TH1 = x_THE.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
    store_act((x_THE * inverse_rms_TH1 * weight_E.float()).flatten(1) * F.silu(gate_TN.float()), out)
