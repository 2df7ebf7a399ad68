"""The tier in the host's memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from app.engine.kv.tiers.counts import TierCounts


class RamTier:
    """Records in memory, the least recently used ones first to go. Only the engine's thread calls it.

    Args:
        capacity: bytes of all records, at most.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._records: OrderedDict[bytes, bytes] = OrderedDict()
        self.held_bytes = 0
        """Bytes of all records."""
        self.counts = TierCounts()

    def __contains__(self, name: bytes) -> bool:
        return name in self._records

    def get(self, name: bytes) -> bytes | None:
        """A record; None: it is not here."""
        return self._records.get(name)

    def touch(self, names: Iterable[bytes]) -> None:
        """Makes records the most recently used ones, the last of them most of all."""
        for name in names:
            if name in self._records:
                self._records.move_to_end(name)

    def put(self, name: bytes, record: bytes) -> list[tuple[bytes, bytes]]:
        """Takes a record; returns those that had to go, with their names: it may be among them."""
        if name in self._records:
            self._records.move_to_end(name)
            return []
        if len(record) > self._capacity:
            return [(name, record)]
        self._records[name] = record
        self.held_bytes += len(record)
        self.counts.stores += 1
        gone = []
        while self.held_bytes > self._capacity:
            oldest = self._records.popitem(last=False)
            self.held_bytes -= len(oldest[1])
            gone.append(oldest)
        return gone

    def discard(self, name: bytes) -> None:
        """Forgets a record, if it is here."""
        record = self._records.pop(name, None)
        if record is not None:
            self.held_bytes -= len(record)

    def newest_first(self) -> list[tuple[bytes, bytes]]:
        """All records with their names, the most recently used one first."""
        return list(reversed(self._records.items()))
