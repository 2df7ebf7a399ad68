"""How long a request waited, worked on its prompt and worked on its answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from app.contract.frames import RequestTimings


class Phases(NamedTuple):
    """Seconds that a request spent in each phase; None for a phase not known yet.

    The engine says nothing of a request before its first token.
    """

    queue: float | None = None
    prefill: float | None = None
    decode: float | None = None
    """Seconds of decoding so far, while the request goes on."""


def phases(timings: RequestTimings | None, now: float) -> Phases:
    """The phases of one request. A stop string ends a request before the engine says so: then ``now`` is its end."""
    if timings is None or timings.first_scheduled is None:
        return Phases()
    queue = timings.first_scheduled - timings.arrival
    if timings.first_token is None:
        return Phases(queue)
    end = now if timings.finished is None else timings.finished
    return Phases(queue, timings.first_token - timings.first_scheduled, end - timings.first_token)


def longest(parts: Iterable[Phases]) -> Phases:
    """Phases of several requests that run at the same time."""
    each = list(parts)
    return Phases(
        *(max((value for value in values if value is not None), default=None) for values in zip(*each, strict=True))
    )
