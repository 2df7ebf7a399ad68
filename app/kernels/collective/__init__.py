"""What the ranks of a tensor-parallel model do together: sum what each has, gather what each has.

Every rank runs the same step, so that all of them come to the same collectives in the same order.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from app.kernels.check import FLOATING, check_tensor
from app.kernels.collective.reference import place_columns
from app.kernels.dispatch import refuse_recording

__all__ = ["ONE_RANK", "Collective", "Ranks", "all_reduce", "gather_columns"]


class Collective(Protocol):
    """The ranks' connection to each other. A rank that is gone makes either method raise RuntimeError."""

    def all_reduce(self, values: Tensor) -> None:
        """Sums every rank's ``values`` in place: the same bits on every rank."""

    def all_gather(self, parts: Tensor) -> None:
        """Copies every rank's ``parts[rank]`` to the other ranks."""


class Ranks:
    """This rank and how many there are, itself included."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size
        self._collective: Collective | None = None

    def join(self, collective: Collective) -> None:
        """Connects to the other ranks."""
        self._collective = collective

    @property
    def collective(self) -> Collective:
        """The connection. Raises RuntimeError before :meth:`join`."""
        if self._collective is None:
            raise RuntimeError(f"rank {self.rank} of {self.size} is not connected to the others")
        return self._collective


ONE_RANK = Ranks()
"""A model that is not shared out."""


def all_reduce(values_TD: Tensor, ranks: Ranks) -> None:
    """Sums every rank's ``values`` in place, in their dtype: the same bits on every rank.

    Args:
        values_TD: [T, D] floating.

    Raises:
        ValueError: another dtype, or not contiguous.
        FallbackError: a step is being recorded, which cannot hold it.
    """
    check_tensor("all_reduce", "values", values_TD, tuple(values_TD.shape), *FLOATING)
    refuse_recording("all_reduce", "ranks meet between native kernels")
    ranks.collective.all_reduce(values_TD)


def gather_columns(parts_NLW: Tensor, out_LV: Tensor, ranks: Ranks) -> None:
    """``out[l, n * W + w] = parts[n, l, w]``, where each rank has filled the part of its own number.

    Args:
        parts_NLW: [ranks, L, W] fp32; the other ranks' parts are overwritten.
        out_LV: [L, V] fp32, V at most ranks * W: columns beyond are left out.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
        FallbackError: a step is being recorded, which cannot hold it.
    """
    rows, width = parts_NLW.shape[1:]
    columns = out_LV.shape[1]
    check_tensor("gather_columns", "parts", parts_NLW, (ranks.size, rows, width), torch.float32)
    check_tensor("gather_columns", "out", out_LV, (rows, columns), torch.float32)
    if columns > ranks.size * width:
        raise ValueError(f"gather_columns: out has {columns} columns, {ranks.size} ranks have {width} each")
    refuse_recording("gather_columns", "ranks meet between native kernels")
    ranks.collective.all_gather(parts_NLW)
    place_columns(parts_NLW, out_LV)
