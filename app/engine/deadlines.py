"""When requests must be done."""

from __future__ import annotations

import heapq

_SLACK = 64
"""Entries of forgotten requests that are kept whatever the load: dropping them takes a pass over all."""


class Deadlines:
    """Requests by the instant at which they expire. Memory follows those watched, not those that ever were."""

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

    def pop_expired(self, now: float) -> list[str]:
        """Requests whose deadline is ``now`` or past, earliest first; they are forgotten."""
        expired: list[str] = []
        while self._heap and self._heap[0][0] <= now:
            deadline, request_id = heapq.heappop(self._heap)
            if self._watched.get(request_id) == deadline:
                del self._watched[request_id]
                expired.append(request_id)
        return expired
