"""How a router's logits become the choice of experts, and what each of them counts."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Scoring(enum.Enum):
    """How logits become scores, and those of the chosen experts weights."""

    SOFTMAX = "softmax"
    """Softmax over all experts."""
    SOFTMAX_CHOSEN = "softmax chosen"
    """The scores are the logits; the weights are their softmax over the chosen experts."""
    SIGMOID = "sigmoid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Experts in groups of neighbours, of which a token's experts are in the best alone (DeepSeek-AI 2024,
    arXiv:2405.04434, section 2.2.2)."""

    count: int
    """Groups, of equal size."""
    chosen: int
    """Groups of a token."""
    best: int = 1
    """A group is worth the sum of so many of its best experts, 1 or 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingRule:
    """A mixture's rule."""

    scoring: Scoring = Scoring.SOFTMAX
    normalise: bool
    """A token's weights are divided by their sum."""
    least_sum: float = 0.0
    """Least sum of weights to divide by; a smaller one counts as this."""
    sum_offset: float = 0.0
    """Number added to that sum."""
    scale: float = 1.0
    """Factor on the weights, behind all else."""
    groups: Groups | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it says no more than how to score, and whether to normalise."""
        return not self.is_grouped and self.scale == 1.0 and self.least_sum == self.sum_offset == 0.0

    @property
    def is_grouped(self) -> bool:
        """Whether there is more than one group."""
        return self.groups is not None and self.groups.count > 1
