"""The order in which packed weights keep their outputs: for the weights, and for adapters beside them."""

from __future__ import annotations

import torch
from torch import Tensor

PANEL = 16
"""Neighbouring outputs of a gate, or of the up projection, that stand side by side."""


def packed_positions(out_features: int, first_row: int, count: int, *, gate_up: bool) -> Tensor:
    """Indices, in the packed order of a weight [``out_features``, K], of ``count`` rows from ``first_row`` on."""
    rows = torch.arange(first_row, first_row + count)
    if not gate_up:
        return rows
    half = out_features // 2
    is_up = (rows >= half).long()
    rows = rows - is_up * half
    return (rows // PANEL * 2 + is_up) * PANEL + rows % PANEL
