"""Pieces of a row's vocabulary on a GPU, and the workspace in which their results are combined. Imports no Triton."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PIECE = 2048
"""Logits of a piece, which one program reads."""

KEPT = 128
"""Logits of a piece that are listed, the largest, to find a row's threshold among them first."""

MAX_TOP_LOGPROBS_TRITON = 32
"""Alternatives beside a reported token that Triton lists, at most."""


@dataclass(frozen=True, slots=True)
class SampleWorkspace:
    """Flat buffers, with a value for each piece of each row but where it says otherwise."""

    peaks: Tensor
    """fp32: the piece's largest penalised logit."""
    peak_ids: Tensor
    """int32: the token of that logit."""
    faults: Tensor
    """int32: 1 where the piece holds a NaN or +inf."""
    draws: Tensor
    """fp32: the piece's largest sum of logit and noise."""
    draw_ids: Tensor
    """int32: the token of that sum."""
    kept: Tensor
    """fp32: the piece's largest scaled logits, :data:`KEPT` of each piece."""
    kept_from: Tensor
    """fp32: the level above which all of the piece's scaled logits are in ``kept``."""
    left_mass: Tensor
    """fp32: sum of the exponentials of the piece's other scaled logits."""
    thresholds: Tensor
    """fp32: the least scaled logit that a row keeps, one for each row."""


def num_pieces(vocab_size: int) -> int:
    """Pieces of a row of logits."""
    return -(-vocab_size // PIECE)


def new_sample_workspace(max_rows: int, vocab_size: int, device: torch.device) -> SampleWorkspace:
    """A workspace for steps of up to ``max_rows`` sampled rows."""
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
