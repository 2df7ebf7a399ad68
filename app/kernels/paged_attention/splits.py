"""Splits of a decode's keys on a GPU, and the workspace in which their results are combined. Imports no Triton."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_SPLITS = 32
"""Splits of a sequence, at most: a split is one tile of the kernel, or more tiles where there would be more splits."""
VECTOR_EXTRA = 4
"""Elements of a split's result beside its sums: its peak, its mass, and padding that keeps sums aligned."""
_PROGRAMS = 512
"""Programs that a launch is to have: where rows make fewer, several programs share each row's splits."""


def programs_of_row(rows: int, kv_heads: int) -> int:
    """Programs for each KV head of a row; with one, nothing is left in the workspace."""
    return min(MAX_SPLITS, -(-_PROGRAMS // (rows * kv_heads)))


def workspace_size(rows: int, num_heads: int, head_dim: int) -> int:
    """Elements of the workspace that ``rows`` rows use whose splits several programs share."""
    return rows * num_heads * MAX_SPLITS * (head_dim + VECTOR_EXTRA)


def new_split_workspace(max_rows: int, num_heads: int, kv_heads: int, head_dim: int, device: torch.device) -> Tensor:
    """A workspace [R, H, MAX_SPLITS, E + 4] fp32, flat, for steps of up to ``max_rows`` rows.

    All layers use it in turn.
    """
    most = min(max_rows, (_PROGRAMS - 1) // kv_heads)  # of steps of more rows each has one program
    return torch.empty(workspace_size(most, num_heads, head_dim), dtype=torch.float32, device=device)
