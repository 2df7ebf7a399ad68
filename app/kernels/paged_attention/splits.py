"""How a decode's keys are cut on a GPU, and the memory where the splits' results meet. Torch alone."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_SPLITS = 32
"""Of a sequence: a split is a tile of the kernel, or as many as leave no more splits than these."""
VECTOR_EXTRA = 4
"""Beside a split's sums: its peak and its mass, and what keeps sums aligned."""
_PROGRAMS = 512
"""That a launch is to have: rows that make fewer share each row's splits among several."""


def programs_of_row(rows: int, kv_heads: int) -> int:
    """Programs for each KV head of a row; with one, nothing is left in the workspace."""
    return min(MAX_SPLITS, -(-_PROGRAMS // (rows * kv_heads)))


def workspace_size(rows: int, num_heads: int, head_dim: int) -> int:
    """Elements that ``rows`` rows of several programs each use."""
    return rows * num_heads * MAX_SPLITS * (head_dim + VECTOR_EXTRA)


def new_split_workspace(max_rows: int, num_heads: int, kv_heads: int, head_dim: int, device: torch.device) -> Tensor:
    """Room [R, H, MAX_SPLITS, E + 4] fp32, flat, for steps of up to ``max_rows`` rows; all layers use it in turn."""
    most = min(max_rows, (_PROGRAMS - 1) // kv_heads)  # of steps of more rows each has one program
    return torch.empty(workspace_size(most, num_heads, head_dim), dtype=torch.float32, device=device)
