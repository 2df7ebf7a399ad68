"""How a row's vocabulary is cut on a GPU, and where the pieces meet. Torch alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PIECE = 2048
"""Logits that a program looks at."""

KEPT = 128
"""Of a piece's logits, the largest: where a row's threshold is looked for first."""

MAX_TOP_LOGPROBS_TRITON = 32
"""Alternatives beside a reported token that Triton lists."""


@dataclass(frozen=True, slots=True)
class SampleWorkspace:
    """Flat buffers: a value a piece and row, but for ``kept``, ``KEPT`` of each, and the thresholds, one a row."""

    peaks: Tensor
    """fp32"""
    peak_ids: Tensor
    """int32"""
    faults: Tensor
    """int32"""
    draws: Tensor
    """fp32"""
    draw_ids: Tensor
    """int32"""
    kept: Tensor
    """fp32"""
    kept_from: Tensor
    """fp32"""
    left_mass: Tensor
    """fp32"""
    thresholds: Tensor
    """fp32"""


def num_pieces(vocab_size: int) -> int:
    """Pieces of a row of logits."""
    return -(-vocab_size // PIECE)


def new_sample_workspace(max_rows: int, vocab_size: int, device: torch.device) -> SampleWorkspace:
    """For steps of up to ``max_rows`` sampled rows."""
    size = max_rows * num_pieces(vocab_size)

    def new(dtype: torch.dtype, count: int = size) -> Tensor:
        return torch.empty(count, dtype=dtype, device=device)

    return SampleWorkspace(
        peaks=new(torch.float32),
        peak_ids=new(torch.int32),
        faults=new(torch.int32),
        draws=new(torch.float32),
        draw_ids=new(torch.int32),
        kept=new(torch.float32, size * KEPT),
        kept_from=new(torch.float32),
        left_mass=new(torch.float32),
        thresholds=new(torch.float32, max_rows),
    )
