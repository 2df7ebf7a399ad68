"""The other ranks of a tensor-parallel model, as the first one's process has them: started, fed, watched and ended."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from app.contract.config import EngineConfig
from app.contract.step import Plan
from app.ipc import FrameAssembler, encode, frame_bytes
from app.runner.errors import RunnerError

_log = logging.getLogger(__name__)

# It imports from where this process does: the working directory may hold a package of the same name.
_RANK_ENTRY = f"""import sys
sys.path[:] = {sys.path!r}
if sys.argv[2] == "bound":
    from app.parent import end_with_parent
    end_with_parent()
from app.runner.rank import main
sys.exit(main(int(sys.argv[1])))"""
_COMMAND = (sys.executable, "-P", "-c", _RANK_ENTRY)
_OWN_FDS = Path("/proc/self/fd")
_READ_BYTES = 64 << 10
_EXIT_GRACE = 2.0
"""Seconds that a rank gets to end by itself."""


class RankStart(msgspec.Struct, frozen=True):
    """The first frame to a rank; every other is a :class:`~app.contract.step.StepPlan`."""

    config: EngineConfig
    rank: int
    meeting: str
    """Path of the file by which the ranks find each other."""


class RankLoaded(msgspec.Struct, frozen=True, tag="loaded"):
    """A rank has its share of the model and goes on to connect to the others."""

    weight_bytes: int


class RankFailed(msgspec.Struct, frozen=True, tag="failed"):
    """A rank ends; one line a person can act on."""

    message: str


class Meeting:
    """The file by which the ranks find each other.

    On Linux it has no name, and is gone with the ranks however they end.
    """

    def __init__(self) -> None:
        self.inherited: tuple[int, ...] = ()
        """Descriptors that the other ranks need."""
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        if sys.platform == "linux" and _OWN_FDS.is_dir():
            # Never closed: torch's store opens the path again and again, for the last time as it is freed. By then the
            # number could be that of any other file.
            self.inherited = (os.memfd_create("tuili-ranks"),)
            self.path = _OWN_FDS / str(self.inherited[0])
        else:
            self._directory = tempfile.TemporaryDirectory(prefix="tuili-ranks-", ignore_cleanup_errors=True)
            self.path = Path(self._directory.name) / "ranks"

    def close(self) -> None:
        """Removes what has a name. The ranks have met, or never will."""
        if self._directory is not None:
            self._directory.cleanup()


class RankProcess:
    """Another rank, seen from the first.

    Args:
        inherited: descriptors that it gets besides its own connection's.
        on_end: called from a thread of this object's own, once, with one line about how the rank ended.
    """

    def __init__(self, start: RankStart, inherited: Sequence[int], on_end: Callable[[str], None]) -> None:
        self._rank = start.rank
        self._on_end = on_end
        self._loaded = threading.Event()
        self.weight_bytes = 0
        self._socket, theirs = socket.socketpair()
        with theirs:
            # What binds it to its parent binds it to this thread; one that may end earlier than the model must not.
            bound = "bound" if threading.current_thread() is threading.main_thread() else "free"
            self._process = subprocess.Popen(
                [*_COMMAND, str(theirs.fileno()), bound],
                pass_fds=(theirs.fileno(), *inherited),
                stdin=subprocess.DEVNULL,
            )
        threading.Thread(target=self._watch, name=f"rank {start.rank}", daemon=True).start()
        self.send(frame_bytes(encode(start)))

    def send(self, frame: bytes) -> None:
        """Sends a frame; the rank reads at any time. That a rank is gone is reported by :meth:`_watch`, not here."""
        with contextlib.suppress(OSError):
            self._socket.sendall(frame)

    def wait_loaded(self) -> None:
        """Waits until the rank has its share of the model, or has ended."""
        self._loaded.wait()

    def _watch(self) -> None:
        """Reads what the rank says until it is gone."""
        assembler, failure = FrameAssembler(), None
        with contextlib.suppress(OSError):
            while data := self._socket.recv(_READ_BYTES):
                for payload in assembler.feed(data):
                    match msgspec.msgpack.decode(payload, type=RankLoaded | RankFailed):
                        case RankLoaded(weight_bytes=weight_bytes):
                            self.weight_bytes = weight_bytes
                            self._loaded.set()
                        case RankFailed(message=message):
                            failure = message
        self._on_end(f"rank {self._rank}: {failure}" if failure else f"rank {self._rank} {self._describe_end()}")
        self._loaded.set()

    def _describe_end(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_EXIT_GRACE)
            if code < 0:
                with contextlib.suppress(ValueError):
                    return f"was ended by {signal.Signals(-code).name}"
            return f"exited with code {code}"
        return "closed its connection"

    def hang_up(self) -> None:
        """Closes the connection, at which the rank ends, whatever it is doing."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def reap(self) -> None:
        """Waits for the process to end, and kills it if it does not."""
        try:
            self._process.wait(_EXIT_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._socket.close()


class RankProcesses:
    """The other ranks.

    Args:
        on_lost: called once, from any thread, if a rank ends before :meth:`stop`, and after the others were told to.
    """

    def __init__(self, config: EngineConfig, on_lost: Callable[[str], None]) -> None:
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._lost: str | None = None
        self._ended = threading.Event()
        self._meeting = Meeting()
        self.meeting = self._meeting.path
        self._processes: list[RankProcess] = []
        try:
            for rank in range(1, config.tensor_parallel_size):
                start = RankStart(config, rank, str(self.meeting))
                self._add(RankProcess(start, self._meeting.inherited, self.lose))
        except BaseException:
            self.stop()
            raise

    def _add(self, process: RankProcess) -> None:
        self._processes.append(process)
        if self._lost is not None:  # another has failed meanwhile
            process.hang_up()

    def wait_loaded(self) -> int:
        """Waits until every rank has its share of the model; returns the bytes of their weights.

        Raises:
            RunnerError: a rank has failed.
        """
        for process in self._processes:
            process.wait_loaded()
        self.check()
        return sum(process.weight_bytes for process in self._processes)

    def send(self, step: Plan) -> None:
        """Has every rank run a step. Raises :class:`RunnerError` if one is gone."""
        self.check()
        frame = frame_bytes(encode(step))
        for process in self._processes:
            process.send(frame)

    def check(self) -> None:
        """Raises :class:`RunnerError` if a rank is gone."""
        if self._lost is not None:
            raise RunnerError(self._lost)

    def wait_lost(self, seconds: float) -> None:
        """Waits until a rank is gone, ``seconds`` at most."""
        self._ended.wait(seconds)

    def lose(self, reason: str) -> None:
        """Ends all ranks, because one of them, perhaps this process, cannot go on."""
        if self._end(reason):
            _log.error("the model's ranks are lost: %s", reason)
            self._on_lost(reason)

    def stop(self) -> None:
        """Ends all ranks and waits for them."""
        self._end("the ranks were stopped")
        for process in self._processes:
            process.reap()

    def _end(self, reason: str) -> bool:
        """Ends the connections to all ranks; returns whether this was the first call."""
        with self._lock:
            if self._lost is not None:
                return False
            self._lost = reason
        self._ended.set()
        for process in self._processes:
            process.hang_up()
        self._meeting.close()
        return True
