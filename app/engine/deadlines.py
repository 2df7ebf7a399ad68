"""The instants by which requests must be done, on the engine's clock in seconds."""

from __future__ import annotations

import heapq

_SLACK = 64
"""Entries of forgotten requests that may stay in the heap: dropping them takes a pass over all entries."""


class Deadlines:
    """Requests by the instant at which they expire. Memory grows with the requests watched now, not with all so far."""

    def __init__(self) -> None:
        self._watched: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def watch(self, request_id: str, deadline: float) -> None:
        """Lets ``request_id`` expire at ``deadline``."""
        self._watched[request_id] = deadline
        heapq.heappush(self._heap, (deadline, request_id))

    def forget(self, request_id: str) -> None:
        """The request is over; harmless when it was not watched."""
        if self._watched.pop(request_id, None) is not None and len(self._heap) > 2 * len(self._watched) + _SLACK:
            self._heap = [(deadline, watched) for watched, deadline in self._watched.items()]
            heapq.heapify(self._heap)

    @property
    def next(self) -> float | None:
        """The earliest deadline that is watched, or one before it; None: there is none."""
        return self._heap[0][0] if self._heap else None

    def pop_expired(self, now: float) -> list[str]:
        """Requests whose deadline is ``now`` or past, earliest first; they are forgotten."""
        expired: list[str] = []
        while self._heap and self._heap[0][0] <= now:
            deadline, request_id = heapq.heappop(self._heap)
            if self._watched.get(request_id) == deadline:
                del self._watched[request_id]
                expired.append(request_id)
        return expired
