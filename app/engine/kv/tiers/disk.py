"""The tier on disk: an index in memory, files that a thread writes behind the engine.

Several processes may share a directory: each writes whole files and believes none. What others wrote is known from the
next scan on; the bound on its size is held by each for all files that it knows of.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from queue import SimpleQueue
from typing import NamedTuple

from app.engine.kv.tiers.block_file import HEAD_BYTES, DamagedFileError, read_file, write_file
from app.engine.kv.tiers.counts import TierCounts
from app.engine.kv.tiers.directory import BlockDirectory

QUEUE_BYTES = 64 << 20
"""Bytes of records that wait to be written, beyond which no more are taken."""
_SCAN_SECONDS = 30.0
"""Seconds between two scans, at least; and a hundred times what a scan takes."""
_PAUSE_SECONDS = 30.0
"""Seconds without writing after a write failed: a full disk does not get room by being asked for each block."""

_log = logging.getLogger(__name__)


class _Write(NamedTuple):
    """A record to be written."""

    key: bytes
    record: bytes


class _Touch(NamedTuple):
    """Records that were used, the last of them most recently."""

    keys: Sequence[bytes]


class DiskTier:
    """Records in files. The engine's thread asks and queues; one thread, begun at the first write, writes and deletes.

    Args:
        capacity: bytes of all files, at most.

    Raises:
        OSError: the directory cannot be read.
    """

    def __init__(self, directory: BlockDirectory, capacity: int) -> None:
        self._directory, self._capacity = directory, capacity
        self._lock = threading.Lock()
        self._files: OrderedDict[bytes, int] = OrderedDict()
        """Key -> bytes of the file, the least recently used first."""
        self._queued: set[bytes] = set()
        self._revoked: set[bytes] = set()
        """Those of the queued keys that are not to be written."""
        self._queued_bytes = 0
        self.held_bytes = 0
        """Bytes of all files that are known."""
        self.counts = TierCounts()
        self._queue: SimpleQueue[_Write | _Touch | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._paused_until = 0.0
        self._gives_up = False
        """Whether what is still queued is dropped: the engine has ended."""
        self._next_scan = 0.0
        self._scan()

    def __contains__(self, name: bytes) -> bool:
        return self._directory.key_of(name) in self._files

    def knows(self, name: bytes) -> bool:
        """Whether a record is here, or waits to be written."""
        key = self._directory.key_of(name)
        return key in self._files or key in self._queued

    @property
    def has_room(self) -> bool:
        """Whether :meth:`store` would take some records now: half of the queue is left to blocks that are given up."""
        return self._queued_bytes < QUEUE_BYTES // 2 and not self.is_paused

    @property
    def is_paused(self) -> bool:
        """Whether nothing is written for a while, since it failed."""
        return time.monotonic() < self._paused_until

    # -- the engine's side --------------------------------------------------------------------------------------

    def get(self, name: bytes, nbytes: int) -> bytes | None:
        """Reads a record; None: it is not here, or was damaged and is no more.

        Args:
            nbytes: bytes that it has to have.
        """
        key = self._directory.key_of(name)
        if key not in self._files:
            return None
        try:
            return read_file(self._directory.file_of(key), key, nbytes)
        except FileNotFoundError:  # another process, or a person, deleted it
            self._forget(key)
        except (DamagedFileError, OSError) as error:
            _log.warning("a record of the prefix cache is damaged and goes: %s", error)
            self.counts.damaged += 1
            self._delete(key)
        return None

    def store(self, name: bytes, record: bytes) -> None:
        """Has a record written, or drops it if too much waits already."""
        key = self._directory.key_of(name)
        with self._lock:
            if key in self._files or key in self._queued:
                return
            if self._queued_bytes > QUEUE_BYTES or self.is_paused or HEAD_BYTES + len(record) > self._capacity:
                self.counts.drops += 1
                return
            self._queued.add(key)
            self._queued_bytes += len(record)
        self._send(_Write(key, record))

    def touch(self, names: Iterable[bytes]) -> None:
        """Makes records the most recently used ones, the last of them most of all."""
        self._send(_Touch([self._directory.key_of(name) for name in names]))

    def discard(self, name: bytes) -> None:
        """Deletes a record, or has it not written."""
        key = self._directory.key_of(name)
        with self._lock:
            is_queued = key in self._queued
            if is_queued:
                self._revoked.add(key)
        if not is_queued and key in self._files:
            self._delete(key)

    def close(self, seconds: float) -> None:
        """Writes what is queued, as far as it can be done in so many seconds."""
        if self._thread is None:
            return
        self._queue.put(None)
        self._thread.join(seconds)
        self._gives_up = True

    def _send(self, order: _Write | _Touch) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="prefix cache", daemon=True)
            self._thread.start()
        self._queue.put(order)

    # -- the thread ---------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (order := self._queue.get()) is not None:
            if isinstance(order, _Touch):
                self._touch(order.keys)
                continue
            is_written = False
            try:
                if not self._gives_up and not self.is_paused:
                    self._write(order)
                    is_written = True
            except OSError as error:
                self._paused_until = time.monotonic() + _PAUSE_SECONDS
                _log.warning("the prefix cache's files are not written for %g s: %s", _PAUSE_SECONDS, error)
            self._done(order, is_written=is_written)

    def _done(self, order: _Write, *, is_written: bool) -> None:
        """Takes a record off the queue's books, and its file away if it was not to be written after all."""
        with self._lock:
            self._queued.discard(order.key)
            self._queued_bytes -= len(order.record)
            is_revoked = order.key in self._revoked
            self._revoked.discard(order.key)
            self.counts.drops += not is_written
        if is_revoked:
            self._delete(order.key)

    def _write(self, order: _Write) -> None:
        if time.monotonic() >= self._next_scan:
            self._scan()
        nbytes = HEAD_BYTES + len(order.record)
        while (oldest := self._oldest_beyond(self._capacity - nbytes)) is not None:
            self._delete(oldest)
        write_file(self._directory.file_of(order.key), self._directory.partial_file(), order.key, order.record)
        with self._lock:
            self.held_bytes += nbytes - self._files.pop(order.key, 0)
            self._files[order.key] = nbytes
        self.counts.stores += 1

    def _touch(self, keys: Sequence[bytes]) -> None:
        """The files' times say to other processes, and to the next start, what was used when."""
        now = time.time_ns() - len(keys)
        for index, key in enumerate(keys):
            with self._lock:
                if key not in self._files:
                    continue
                self._files.move_to_end(key)
            with contextlib.suppress(OSError):
                os.utime(self._directory.file_of(key), ns=(now + index, now + index))

    def _scan(self) -> None:
        began = time.monotonic()
        found = OrderedDict((file.key, file.nbytes) for file in self._directory.scan())
        with self._lock:
            self._files = found
            self.held_bytes = sum(found.values())
        ended = time.monotonic()
        self._next_scan = ended + max(_SCAN_SECONDS, 100 * (ended - began))

    # -- both ---------------------------------------------------------------------------------------------------

    def _oldest_beyond(self, capacity: int) -> bytes | None:
        """The least recently used record, if there are more bytes than ``capacity``."""
        with self._lock:
            return next(iter(self._files), None) if self.held_bytes > capacity else None

    def _delete(self, key: bytes) -> None:
        self._forget(key)
        with contextlib.suppress(OSError):
            self._directory.file_of(key).unlink()

    def _forget(self, key: bytes) -> None:
        with self._lock:
            self.held_bytes -= self._files.pop(key, 0)
