"""The adapters of a step's tokens, in one linear layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from app.kernels.lora.adapted import LowRankWeight
from app.kernels.lora.pack import PackedLowRankWeight


@dataclass(frozen=True, slots=True)
class LowRank:
    """Adapters of one linear layer, and which of them each token of a step has."""

    weight: LowRankWeight | PackedLowRankWeight
    """Packed beside a packed weight."""
    slots: Tensor
    """[T] int32: the slot of each token's adapter; -1 for none."""
    order: Tensor
    """[T] int32: the step's tokens sorted by slot, so that those of one adapter may share what is read of it."""
    scratch: Tensor
    """fp32, flat, at least T * ``weight.scratch_width`` elements: what is between two kernels."""

    @property
    def plain(self) -> LowRankWeight:
        """The adapters of a layer whose weight is not packed.

        Raises:
            ValueError: they are packed.
        """
        if not isinstance(self.weight, LowRankWeight):
            raise ValueError("adapters are packed, the weight is not")
        return self.weight

    @property
    def packed(self) -> PackedLowRankWeight:
        """The adapters of a layer whose weight is packed.

        Raises:
            ValueError: they are not packed.
        """
        if not isinstance(self.weight, PackedLowRankWeight):
            raise ValueError("the weight is packed, its adapters are not")
        return self.weight
