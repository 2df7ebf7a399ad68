"""Specification of what ``gather_columns`` does with the parts once every rank has them all."""

from __future__ import annotations

from torch import Tensor


def place_columns(parts_NLW: Tensor, out_LV: Tensor) -> None:
    width = parts_NLW.shape[2]
    for part_LW, start in zip(parts_NLW, range(0, out_LV.shape[1], width), strict=False):
        columns = out_LV[:, start : start + width]
        columns.copy_(part_LW[:, : columns.shape[1]])
