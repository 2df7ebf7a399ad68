"""How a model stretches its rotary embedding past the context it was first trained on (torch-free).

:mod:`app.layers.rotary` turns these into frequencies.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

_Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e9)]
_PositiveInt = Annotated[int, msgspec.Meta(gt=0, lt=1 << 31)]


class LinearScaling(msgspec.Struct, frozen=True):
    """Position interpolation: every frequency divided by ``factor`` (Chen et al. 2023, arXiv:2306.15595)."""

    factor: _Positive


class Llama3Scaling(msgspec.Struct, frozen=True):
    """Llama 3.1: long wavelengths divided by ``factor``, short ones kept, a ramp between the two."""

    factor: _Positive
    low_freq_factor: _Positive
    high_freq_factor: _Positive
    original_max_position_embeddings: _PositiveInt


class YarnScaling(msgspec.Struct, frozen=True):
    """YaRN: interpolation by frequency band, with a temperature on attention (Peng et al. 2023, arXiv:2309.00071)."""

    factor: _Positive
    original_max_position_embeddings: _PositiveInt
    attention_factor: float | None = None
    """Multiplies cos and sin; None derives it from ``factor`` and the two ``mscale`` fields."""
    beta_fast: _Positive = 32.0
    beta_slow: _Positive = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    """Round the band's bounds outwards to whole dimensions."""


class LongRopeScaling(msgspec.Struct, frozen=True, kw_only=True):
    """LongRoPE: each frequency divided by a factor of its own, searched for (Ding et al. 2024, arXiv:2402.13753).

    There are two sets: one up to the original context, another beyond it.
    """

    short_factor: tuple[_Positive, ...]
    """Factor of each frequency."""
    long_factor: tuple[_Positive, ...]
    original_max_position_embeddings: Annotated[int, msgspec.Meta(gt=1, lt=1 << 31)]
    factor: _Positive
    """How many times as long as the original the whole context is."""
    attention_factor: _Positive | None = None
    """Multiplies cos and sin under both sets; None derives it from ``factor``."""


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling
