"""Specification of ``scale_logits`` in plain torch."""

from __future__ import annotations

from torch import Tensor


def scale_logits_reference(logits_LV: Tensor, scale: float, softcap: float | None) -> None:
    logits_LV.mul_(scale)
    if softcap is not None:
        logits_LV.div_(softcap).tanh_().mul_(softcap)
