"""How products of queries and keys become scores."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Scores:
    """How scores are made; the fields are arguments of :func:`~app.kernels.paged_attention.paged_attention`."""

    scale: float
    sliding_window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
