"""Keeps an engine process running: spawns it over a socketpair, watches it, starts it again when it dies or stalls."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from app.contract.config import EngineConfig
from app.ipc import ProgressStamp
from app.serving.connection import SocketConnection
from app.serving.engine_client import EngineClient
from app.telemetry.metrics import Metrics

_log = structlog.get_logger("tuili.supervisor")
_TICKS = 20
"""Looks at the engine within the time that it may stall."""
LONGEST_STEP = 600.0
"""Seconds that a step may take of which nothing is known: a large prompt on a slow CPU, the compilation of a GPU's
kernels."""
_SHORTEST_LIMIT = 60.0
_STEPS_A_STALL = 5
"""Steps of the largest size, at the pace of the slowest one seen, that a CPU's engine may take for one."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When an engine is started again that died or stalled. Times in seconds."""

    max_failures: int = 3
    """Failures within ``window`` after which the supervisor gives up."""
    window: float = 300.0
    first_backoff: float = 0.1
    max_backoff: float = 10.0
    exit_grace: float = 2.0
    """Time that a process has to exit by itself, and again after SIGTERM, before it is killed."""
    stall_timeout: float | None = None
    """Time without progress, while there is work, after which an engine is killed. 0: it never is; None: see
    :meth:`Supervisor.stall_limit`. No single step of a sound engine may take as long."""
    load_stall_timeout: float = 1800.0
    """Time without progress after which an engine that loads is killed."""

    def backoff(self, failures: int) -> float:
        """Pause before the start that follows the ``failures``-th failure."""
        return min(self.max_backoff, self.first_backoff * 2.0 ** (failures - 1))


@dataclass(frozen=True, slots=True)
class _End:
    """How an engine's life ended."""

    reason: str
    stalled: float = 0.0
    """Seconds that it stood still until it was killed for that."""


class FailureCount:
    """Failures within a policy's window.

    Time in which an engine stood still is no part of the window: an engine that stalls again as soon as it works
    would otherwise never fail often enough.
    """

    def __init__(self, window: float) -> None:
        self._window = window
        self._times: deque[float] = deque()
        self._stalled = 0.0

    def add(self, now: float, stalled: float = 0.0) -> int:
        """Counts a failure that came at ``now``, after ``stalled`` seconds of standing still; returns how many are in
        the window."""
        self._stalled += stalled
        self._times.append(now - self._stalled)
        while self._times[0] < self._times[-1] - self._window:
            self._times.popleft()
        return len(self._times)


class Supervisor:
    """Runs one engine process at a time for a client.

    The process gets the numbers of two inherited descriptors as its last arguments: the socket and the progress
    stamp. It leads a process group of its own, which is signalled as a whole: the other ranks of a model are in it.
    It leaves by itself when the socket closes, so it does not outlive this process (one that hangs: see
    :func:`app.parent.end_with_parent`).

    An engine that shows no progress is killed. Progress is what it writes into the stamp, not an answer to a ping: a
    saturated engine would be late with those.

    Args:
        command: argument vector of the engine process, without the two descriptors.
        on_give_up: called once, with one line for a person, when there will be no engine any more: the first start
            failed, or too many failures within the policy's window, stalls among them.
    """

    def __init__(
        self,
        client: EngineClient,
        config: EngineConfig,
        command: Sequence[str],
        *,
        metrics: Metrics,
        on_give_up: Callable[[str], None],
        policy: RestartPolicy | None = None,
    ) -> None:
        self._client = client
        self._config = config
        client.adapters.begin(config.adapters)
        self._command = list(command)
        self._metrics = metrics
        self._on_give_up = on_give_up
        self._policy = policy or RestartPolicy()
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """Process id of the present engine; None without one."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Begins to start the engine; :meth:`EngineClient.wait_ready` says when it is up."""
        self._task = asyncio.create_task(self._supervise(), name="engine-supervisor")

    async def stop(self) -> None:
        """Ends the engine: asked first, then terminated, then killed. Requests in flight are answered with errors."""
        self._stopping = True
        if self._task is None:
            return
        if not self._client.loading:  # a loading engine reads nothing
            self._client.shut_down()
            await asyncio.wait([self._task], timeout=self._policy.exit_grace)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def stall_limit(self) -> float:
        """Seconds without progress, while there is work, after which the engine counts as stalled; 0 for never.

        Where the policy names none: a few steps of the largest size, at the pace of the slowest step so far,
        within 60 s and :data:`LONGEST_STEP`; on a GPU, and before the first step, the latter.
        """
        client = self._client
        if self._policy.stall_timeout is not None:
            return self._policy.stall_timeout
        if client.slowest_token is None or client.ready is None or client.ready.info.device.startswith("cuda"):
            return LONGEST_STEP
        largest = client.slowest_token * self._config.max_num_batched_tokens
        return min(LONGEST_STEP, max(_SHORTEST_LIMIT, _STEPS_A_STALL * largest))

    async def _supervise(self) -> None:
        count = FailureCount(self._policy.window)
        while True:
            try:
                end = await self._run_once()
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody else would start an engine again
                _log.exception("supervision failed")
                end = _End(f"supervision failed: {type(error).__name__}: {error}")
            if self._stopping:
                return
            if self._client.ready is None:
                self._give_up(end.reason)
                return
            failures = count.add(time.monotonic(), end.stalled)
            if failures >= self._policy.max_failures:
                minutes = self._policy.window / 60
                self._give_up(f"the engine failed {failures} times within {minutes:g} minutes; last: {end.reason}")
                return
            backoff = self._policy.backoff(failures)
            _log.error("engine died", reason=end.reason, failures=failures, restart_in=backoff)
            await asyncio.sleep(backoff)
            self._metrics.observe_restart()

    def _give_up(self, reason: str) -> None:
        self._client.fail(reason)
        self._on_give_up(reason)

    async def _run_once(self) -> _End:
        """One life of an engine process; returns how it ended, and only after it has been reaped."""
        ours, theirs = socket.socketpair()
        stamp = ProgressStamp.create()
        try:
            with theirs:
                self._process = await self._spawn(theirs.fileno(), stamp.fd)
            return await self._watch(self._process, ours, stamp)
        except OSError as error:
            return _End(f"the engine process could not be started: {error}")
        finally:
            ours.close()
            stamp.close()
            self._process = None

    async def _spawn(self, socket_fd: int, stamp_fd: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self._command,
            str(socket_fd),
            str(stamp_fd),
            pass_fds=(socket_fd, stamp_fd),
            stdin=asyncio.subprocess.DEVNULL,
            # Ctrl-C in a terminal goes to the whole process group; the engine has to outlive the drain that it starts.
            start_new_session=True,
        )

    async def _watch(self, process: asyncio.subprocess.Process, sock: socket.socket, stamp: ProgressStamp) -> _End:
        serving = asyncio.create_task(self._serve(sock, stamp))
        exited = asyncio.create_task(process.wait())
        stalled = asyncio.create_task(self._stalled())
        try:
            await asyncio.wait([serving, exited, stalled], return_when=asyncio.FIRST_COMPLETED)
            if stalled.done():
                self._metrics.observe_stall()
                _signal_group(process, signal.SIGKILL)  # it would not heed anything less
                return stalled.result()
            # The socket may hold last words after the exit, and the exit comes a moment after the socket's end.
            await asyncio.wait([serving, exited], timeout=self._policy.exit_grace)
            last_words = serving.result() if serving.done() else None
            return _End(last_words or _describe_exit(process.returncode))
        finally:
            stalled.cancel()
            # The process first: as long as it lives, closing the connection may wait for it to read.
            await self._reap(process)
            await asyncio.wait([serving, exited], timeout=self._policy.exit_grace)
            for task in (serving, exited):
                task.cancel()
            await asyncio.gather(serving, exited, stalled, return_exceptions=True)

    async def _serve(self, sock: socket.socket, stamp: ProgressStamp) -> str | None:
        config = self._client.adapters.config(self._config)
        return await self._client.serve(await SocketConnection.open(sock, config), stamp)

    async def _stalled(self) -> _End:
        """Waits until the engine has shown no progress for too long."""
        client, policy, seen = self._client, self._policy, 0.0
        while True:
            limit = policy.load_stall_timeout if client.loading else self.stall_limit()
            tick = min(1.0, limit / _TICKS) or 1.0
            await asyncio.sleep(tick)
            # Not the age itself: while this process did not run (suspended, stopped, frozen with its container) the
            # engine did not either.
            seen = min(client.load_age() if client.loading else client.progress_age(), seen + tick)
            if limit and seen >= limit:
                work = "loaded" if client.loading else "had work"
                return _End(f"the engine showed no progress for {seen:g} s while it {work} and was killed", seen)

    async def _reap(self, process: asyncio.subprocess.Process) -> None:
        # A process that is stopped gets SIGTERM as it goes on.
        for numbers in ((signal.SIGTERM, signal.SIGCONT), (signal.SIGKILL,)):
            if process.returncode is not None:
                return
            for number in numbers:
                _signal_group(process, number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), self._policy.exit_grace)


def _signal_group(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Signals an engine process that has not been reaped, and the other ranks with it."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the latter from some systems, of a zombie
            os.killpg(process.pid, number)


def _describe_exit(returncode: int | None) -> str:
    if returncode is None:
        return "the engine process closed its connection and does not exit"
    if returncode < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-returncode).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return f"the engine process was ended by {name}{hint}"
    return f"the engine process exited with code {returncode}"
