"""Counts of one tier."""

from __future__ import annotations

from dataclasses import dataclass

from app.contract.frames import TierStats


@dataclass(slots=True)
class TierCounts:
    """What happened in a tier since its process started. Fields are those of :class:`TierStats`."""

    hits: int = 0
    hit_tokens: int = 0
    misses: int = 0
    stores: int = 0
    drops: int = 0
    damaged: int = 0

    def stats(self, tier: str, held_bytes: int) -> TierStats:
        """The counts as a frame has them.

        Args:
            tier: name of the tier.
            held_bytes: bytes of all its records.
        """
        return TierStats(
            tier=tier,
            hits_total=self.hits,
            hit_tokens_total=self.hit_tokens,
            misses_total=self.misses,
            stores_total=self.stores,
            drops_total=self.drops,
            damaged_total=self.damaged,
            held_bytes=held_bytes,
        )
