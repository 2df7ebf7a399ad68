"""When the requests of an open loop arrive."""

from __future__ import annotations

import random
from collections.abc import Iterator


def arrival_times(rate: float, burstiness: float, seed: int) -> Iterator[float]:
    """Seconds from the start, ascending, without end; the gaps are gamma distributed with mean ``1 / rate``.

    Args:
        rate: requests a second.
        burstiness: shape of the distribution; 1 makes it a Poisson process, less is burstier, more is steadier.
    """
    rng = random.Random(f"{seed}/arrivals")  # noqa: S311 - reproducible, not secret
    now = 0.0
    while True:
        now += rng.gammavariate(burstiness, 1 / (rate * burstiness))
        yield now
