"""What becomes of products of queries and keys on their way to probabilities."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Scores:
    """As the arguments of :func:`~app.kernels.paged_attention.paged_attention` of these names."""

    scale: float
    sliding_window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
