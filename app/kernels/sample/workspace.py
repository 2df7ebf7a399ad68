"""How a row's vocabulary is cut on a GPU, and where the pieces meet. Torch alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PIECE = 2048
"""Logits that a program looks at."""

MAX_TOP_LOGPROBS_TRITON = 32
"""Alternatives beside a reported token that Triton lists."""


@dataclass(frozen=True, slots=True)
class SampleWorkspace:
    """Flat buffers: a value a piece and row, but for the thresholds, one a row."""

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
    thresholds: Tensor
    """fp32"""


def num_pieces(vocab_size: int) -> int:
    """Pieces of a row of logits."""
    return -(-vocab_size // PIECE)


def new_sample_workspace(max_rows: int, vocab_size: int, device: torch.device) -> SampleWorkspace:
    """For steps of up to ``max_rows`` sampled rows."""
    size = max_rows * num_pieces(vocab_size)
    peaks, draws = (torch.empty(size, dtype=torch.float32, device=device) for _ in range(2))
    peak_ids, faults, draw_ids = (torch.empty(size, dtype=torch.int32, device=device) for _ in range(3))
    thresholds = torch.empty(max_rows, dtype=torch.float32, device=device)
    return SampleWorkspace(peaks, peak_ids, faults, draws, draw_ids, thresholds)
