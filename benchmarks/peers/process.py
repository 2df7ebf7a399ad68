"""A peer's processes: started, watched and ended by their ids. Reads ``/proc``, so Linux alone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_STOP_TIMEOUT = 20.0


class PeerError(Exception):
    """A peer cannot be measured; the message is one line."""


def free_port() -> int:
    """A port of the loopback address on which nobody listens at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class _Stat:
    parent: int
    cpu_seconds: float


def _stat(pid: int) -> _Stat | None:
    try:
        # The name, in parentheses, may hold anything.
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return _Stat(int(fields[1]), (int(fields[11]) + int(fields[12])) / _TICKS)


def descendants(pid: int) -> list[int]:
    """A process and all that come from it, the living ones."""
    parents = {child: stat.parent for child in _pids() if (stat := _stat(child))}
    tree = [pid]
    for member in tree:  # grows while it is gone through
        tree += [child for child, parent in parents.items() if parent == member]
    return tree


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())


def cpu_seconds(pids: Sequence[int]) -> float:
    """Time that living processes have computed so far."""
    return sum(stat.cpu_seconds for pid in pids if (stat := _stat(pid)))


def machine_cpu_seconds() -> float:
    """Time that all cores together have computed so far, for whomever."""
    fields = [int(value) for value in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:]]
    idle, iowait = fields[3], fields[4]
    return (sum(fields[:8]) - idle - iowait) / _TICKS


def peak_resident_bytes(pid: int) -> int:
    """Most memory that a process has held at once; 0 when it is gone."""
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)


@dataclass
class Child:
    """A peer's process and those that it starts."""

    process: subprocess.Popen[str]
    log: Path
    _peaks: dict[int, int] = field(default_factory=dict)

    @property
    def pids(self) -> list[int]:
        """Process ids of the peer and of all its living descendants."""
        return descendants(self.process.pid)

    def note_memory(self) -> int:
        """Sum of the peaks of every process seen so far, in bytes; memory that two share counts twice."""
        for pid in self.pids:
            self._peaks[pid] = max(self._peaks.get(pid, 0), peak_resident_bytes(pid))
        return sum(self._peaks.values())

    def check_alive(self) -> None:
        """Raises:
        PeerError: it has ended; with the last line of its log.
        """
        if self.process.poll() is not None:
            raise PeerError(f"ended with status {self.process.returncode}: {last_line(self.log)} (log: {self.log})")


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


@contextlib.contextmanager
def running(
    command: Sequence[str], env: Mapping[str, str], log: Path, *, cwd: Path | None = None, piped: bool = False
) -> Iterator[Child]:
    """A process in a group of its own, which is ended on leaving, and nothing else.

    Args:
        env: variables besides our own environment.
        log: file that takes its output; standard output only when not ``piped``.
    """
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **env},
            cwd=cwd,
            stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else output,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    try:
        yield Child(process, log)
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    for sig in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sig)
        if _gone(process):
            break
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _gone(process: subprocess.Popen[str]) -> bool:
    """Waits for the whole group, so that nothing of this peer runs beside the next."""
    deadline = time.monotonic() + _STOP_TIMEOUT
    while time.monotonic() < deadline:
        process.poll()
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False
