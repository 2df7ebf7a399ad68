"""Binding of the native ``scale_logits``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim, emit


def scale_logits_cpu(logits_LV: Tensor, scale: float, softcap: float | None) -> None:
    rows, width = logits_LV.shape
    call = Call("scale_logits", Dim.LOGITS, logits=logits_LV, width=width, scale=scale, softcap=softcap or 0.0)
    emit([call], logits=rows)
