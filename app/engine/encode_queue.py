"""Sequences that wait to be encoded, and how they are packed into batches.

A sequence is computed whole, in one batch, and keeps nothing afterwards: no blocks, no slots. A batch takes sequences
in (priority, arrival) order as long as they fit its token budget; none overtakes one that does not fit, so that long
ones do not starve. Waiting tokens are bounded, and requests that were aborted or are late are taken out before they are
computed.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection
from dataclasses import dataclass
from operator import attrgetter

from app.contract.frames import RequestTimings
from app.contract.request import EncodeRequest

_by_order = attrgetter("order")


@dataclass(eq=False, slots=True)
class EncodeEntry:
    """One request to encode as the engine thread sees it."""

    source: EncodeRequest
    order: tuple[int, float, int]
    """Sorts requests by who goes first."""
    first_scheduled: float | None = None
    ended: bool = False
    """Whether the request was answered: a result that is still being computed is not wanted."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the sequence."""
        return len(self.source.token_ids)

    def timings(self, finished: float | None) -> RequestTimings:
        """The request's instants that are known so far."""
        return RequestTimings(self.source.arrival_time, self.first_scheduled, None, finished)


class EncodeQueue:
    """The entries that wait, in (priority, arrival) order.

    Args:
        max_batch_tokens: tokens of one batch, at most; no sequence is longer.
        max_queued_tokens: tokens of all waiting sequences together, at most.
    """

    def __init__(self, max_batch_tokens: int, max_queued_tokens: int) -> None:
        self._max_batch_tokens = max_batch_tokens
        self._max_queued_tokens = max_queued_tokens
        self._entries: list[EncodeEntry] = []
        self.num_tokens = 0
        """Tokens of all waiting sequences."""

    def __len__(self) -> int:
        return len(self._entries)

    def has_room(self, num_tokens: int) -> bool:
        """Whether a sequence of ``num_tokens`` may wait too. A queue that is empty takes one of any length."""
        return not self._entries or self.num_tokens + num_tokens <= self._max_queued_tokens

    def add(self, entry: EncodeEntry) -> None:
        """Queues an entry that :meth:`has_room` let in."""
        insort(self._entries, entry, key=_by_order)
        self.num_tokens += entry.num_tokens

    def discard(self, gone: Collection[EncodeEntry]) -> None:
        """Takes entries out of the queue; those that are not in it are ignored."""
        if gone:
            out = set(gone)
            self._entries = [entry for entry in self._entries if entry not in out]
            self.num_tokens = sum(entry.num_tokens for entry in self._entries)

    def take(self) -> list[EncodeEntry]:
        """The next batch, taken out of the queue; empty when nothing waits."""
        count = tokens = 0
        for entry in self._entries:
            if tokens + entry.num_tokens > self._max_batch_tokens:
                break
            tokens += entry.num_tokens
            count += 1
        batch, self._entries = self._entries[:count], self._entries[count:]
        self.num_tokens -= tokens
        return batch
