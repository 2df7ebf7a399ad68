"""Logits of a model that multiplies or caps them, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.check import check_tensor
from app.kernels.dispatch import native, runs_triton
from app.kernels.scale_logits.cpu import scale_logits_cpu
from app.kernels.scale_logits.reference import scale_logits_reference

__all__ = ["scale_logits"]

_OP = "scale_logits"


def scale_logits(logits_LV: Tensor, *, scale: float = 1.0, softcap: float | None = None) -> None:
    """``y = scale * logits`` in place; with a cap, ``softcap * tanh(y / softcap)``.

    Args:
        logits_LV: [L, V] fp32.
        scale: factor on every logit.
        softcap: bound of what becomes of them, more than 0; None for none.

    Raises:
        ValueError: an argument's shape or dtype does not fit, or the cap is not positive.
    """
    check_tensor(_OP, "logits", logits_LV, (logits_LV.shape[0], logits_LV.shape[-1]), torch.float32)
    if softcap is not None and not softcap > 0:
        raise ValueError(f"{_OP}: softcap is {softcap}, expected more than 0")
    if runs_triton(logits_LV):
        from app.kernels.scale_logits.triton import scale_logits_triton  # only a GPU needs Triton

        scale_logits_triton(logits_LV, scale, softcap)
    elif native(_OP, logits_LV):
        scale_logits_cpu(logits_LV, scale, softcap)
    else:
        scale_logits_reference(logits_LV, scale, softcap)
