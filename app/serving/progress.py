"""How long an engine has shown no progress, seen from the process that asks it."""

from __future__ import annotations

import time

from app.ipc import ProgressStamp


class ProgressWatch:
    """Measures the silence of the engine that is connected at the moment. Instants are :func:`time.monotonic`.

    Progress is a frame from the engine, or what it writes into its stamp.
    """

    def __init__(self) -> None:
        self.started = time.monotonic()
        """Instant at which the present engine began to load."""
        self.last_frame = 0.0
        """Instant of the last frame from any engine."""
        self._last_sent = 0.0
        self._asked_since = 0.0
        """Instant of the first frame to an engine that had nothing to do."""
        self._stamp: ProgressStamp | None = None

    def begin(self, stamp: ProgressStamp | None) -> None:
        """Watches another engine from here on; without a stamp its frames are the only sign of progress."""
        self._stamp = stamp
        self._last_sent = 0.0
        self.started = time.monotonic()

    def end(self) -> None:
        """Reads the stamp no more: the engine is gone."""
        self._stamp = None

    def note_sent(self, *, has_work: bool) -> None:
        """Notes a frame to the engine.

        Args:
            has_work: whether the engine had requests before.
        """
        now = time.monotonic()
        if not (has_work or self._is_unread()):
            self._asked_since = now
        self._last_sent = now

    def age(self, *, has_work: bool) -> float:
        """Seconds for which the engine had work, or frames to read, and showed no progress; 0 while it has none."""
        if not (has_work or self._is_unread()):
            return 0.0
        return max(0.0, time.monotonic() - max(self._asked_since, self.last_frame, self._stamped()))

    def load_age(self) -> float:
        """Seconds since an engine that loads said how far it is."""
        return time.monotonic() - max(self.started, self.last_frame)

    def _is_unread(self) -> bool:
        """Whether there are frames that the engine has not read: it writes its stamp whenever it has read some."""
        return self._stamp is not None and self._stamped() < self._last_sent

    def _stamped(self) -> float:
        return self._stamp.read().time if self._stamp is not None else 0.0
