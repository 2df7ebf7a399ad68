"""Memory that models may take together: a figure from the settings, or what the machine has left."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

PROCESS_BYTES = 512 << 20
"""Bytes that an engine process takes beside weights and KV cache: libraries, and the buffers of its steps."""
RESERVE_BYTES = 256 << 20
"""Bytes of a machine that models leave free."""
_UNKNOWN = 1 << 62
"""Where nothing tells, as on macOS: the system swaps."""


@dataclass(frozen=True, slots=True)
class Share:
    """Memory of one model that is loaded, or is about to be."""

    promised: int
    """Bytes that it may come to take."""
    taken: int
    """Bytes that it takes now."""


class MemoryBudget(Protocol):
    """Says what still fits."""

    def most(self) -> int:
        """Bytes that a model may take which is alone."""

    def left(self, shares: Iterable[Share]) -> int:
        """Bytes that one more model may take beside those that have these shares; may be negative."""


@dataclass(frozen=True, slots=True)
class FixedBudget:
    """So many bytes for all models."""

    limit: int

    def most(self) -> int:
        """All of it."""
        return self.limit

    def left(self, shares: Iterable[Share]) -> int:
        """What is not promised."""
        return self.limit - sum(share.promised for share in shares)


class MachineBudget:
    """What the machine, or the container, has; other programs may take some of it at any time.

    Args:
        root: where the system shows its figures.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._meminfo = root / "proc/meminfo"
        self._cgroup = root / "sys/fs/cgroup"

    def most(self) -> int:
        """All of the memory but a reserve."""
        limits = [self._in_meminfo("MemTotal"), self._in_cgroup("memory.max")]
        return min((limit for limit in limits if limit is not None), default=_UNKNOWN) - RESERVE_BYTES

    def left(self, shares: Iterable[Share]) -> int:
        """What is available now, without what loaded models were promised and have not taken yet."""
        available = [self._in_meminfo("MemAvailable")]
        limit, used = self._in_cgroup("memory.max"), self._in_cgroup("memory.current")
        if limit is not None and used is not None:
            available.append(limit - used)
        known = min((each for each in available if each is not None), default=_UNKNOWN)
        return known - RESERVE_BYTES - sum(max(0, share.promised - share.taken) for share in shares)

    def _in_meminfo(self, name: str) -> int | None:
        try:
            lines = self._meminfo.read_text().splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)

    def _in_cgroup(self, name: str) -> int | None:
        """A figure of this process's container; None without a limit, or outside of one."""
        try:
            text = (self._cgroup / name).read_text().strip()
        except OSError:
            return None
        return int(text) if text.isdigit() else None


def taken_by(pid: int | None) -> int:
    """Bytes of memory that a process holds; 0 where that cannot be read."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
