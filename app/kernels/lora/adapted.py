"""What adapters of low rank add to a linear layer (Hu et al. 2021, arXiv:2106.09685), as kernels read it.

T tokens of a step, S slots of adapters, P parts of a fused layer, R greatest rank, N / K output / input features.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

MAX_RANK = 512
"""Greatest rank of a slot."""
MAX_PARTS = 16
"""Projections of one fused layer, at most."""


@dataclass(frozen=True, slots=True)
class LowRankWeight:
    """The adapters of one linear layer, one a slot.

    A fused layer's projections have matrices of their own: the outputs of part p are columns ``ends[p - 1]`` to
    ``ends[p]`` of ``up``, and come from ``down[:, p]``. What lies behind a part's rank is not read.
    """

    down: Tensor
    """[S, P, R, K] floating: an input's way to the low rank."""
    up: Tensor
    """[S, R, N] of the same dtype: the way from there to the outputs, the adapter's scale in it."""
    ranks: Tensor
    """[S, P] int32: rank of each part; 0 where the slot's adapter leaves the part alone."""
    ends: Tensor
    """[P] int32: the output that each part ends before; the last is N."""

    @property
    def parts(self) -> int:
        """P, the number of projections that are fused."""
        return self.down.shape[1]

    @property
    def rank(self) -> int:
        """R, the greatest rank of a slot."""
        return self.down.shape[2]

    @property
    def scratch_width(self) -> int:
        """Elements a token of the scratch that a product needs."""
        return max(self.up.shape[2], self.parts * self.rank)
