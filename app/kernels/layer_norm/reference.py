"""Specification of ``layer_norm`` in plain torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from app.kernels.int8 import store_act
from app.kernels.types import Act


def layer_norm_reference(
    x_TD: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float, out: Act, residual: Tensor | None
) -> None:
    if residual is not None:
        residual.add_(x_TD)
        x_TD = residual
    bias_D = None if bias_D is None else bias_D.float()
    store_act(F.layer_norm(x_TD.float(), weight_D.shape, weight_D.float(), bias_D, eps), out)
