"""How a decode's keys are cut on a GPU, and the memory where the splits' results meet. Torch alone."""

from __future__ import annotations

import torch
from torch import Tensor

SPLIT = 256
"""Positions of a split, or a multiple of it where a sequence would have more than ``MAX_SPLITS``: both hang on the
sequence's own length alone."""
MAX_SPLITS = 32
VECTOR_EXTRA = 2
"""Beside a split's sums: its peak and its mass."""


def new_split_workspace(max_rows: int, num_heads: int, head_dim: int, device: torch.device) -> Tensor:
    """Room [R, H, MAX_SPLITS, E + 2] fp32, flat, for steps of up to ``max_rows`` rows; all layers use it in turn."""
    size = max_rows * num_heads * MAX_SPLITS * (head_dim + VECTOR_EXTRA)
    return torch.empty(size, dtype=torch.float32, device=device)
