"""Keeps an engine process running: spawns it over a socketpair, watches it, starts it again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from app.ipc import ProgressStamp
from app.serving.connection import SocketConnection
from app.serving.engine_client import EngineClient, EngineState
from app.telemetry.metrics import Metrics
from app.types import EngineConfig

_log = structlog.get_logger("tuili.supervisor")


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When a dead engine is started again. Times in seconds."""

    max_failures: int = 3
    """This many within ``window`` and the supervisor gives up."""
    window: float = 300.0
    first_backoff: float = 0.1
    max_backoff: float = 10.0
    exit_grace: float = 2.0
    """What a process gets to exit by itself, and again after SIGTERM, before it is killed."""

    def backoff(self, failures: int) -> float:
        """Pause before the start that follows the ``failures``-th failure."""
        return min(self.max_backoff, self.first_backoff * 2.0 ** (failures - 1))


class Supervisor:
    """Runs one engine process at a time for a client.

    The process gets the numbers of two inherited descriptors as its last arguments: the socket and the progress
    stamp. It leaves by itself when the socket closes, so it does not outlive this process.

    Args:
        command: argument vector of the engine process, without the two descriptors.
        on_give_up: called once, with one line for a person, when there will be no engine any more: the first start
            failed, or too many failures within the policy's window.
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
        self._command = list(command)
        self._metrics = metrics
        self._on_give_up = on_give_up
        self._policy = policy or RestartPolicy()
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """Of the present engine process."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Begins to start the engine; :meth:`EngineClient.wait_ready` says when it is up."""
        self._task = asyncio.create_task(self._supervise(), name="engine-supervisor")

    async def stop(self) -> None:
        """Ends the engine: asked first, then terminated, then killed. Requests in flight are answered with errors."""
        self._stopping = True
        if self._task is None:
            return
        if self._client.state is not EngineState.LOADING:  # a loading engine reads nothing
            self._client.shut_down()
            await asyncio.wait([self._task], timeout=self._policy.exit_grace)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _supervise(self) -> None:
        failures: deque[float] = deque()
        while True:
            try:
                reason = await self._run_once()
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody else would start an engine again
                _log.exception("supervision failed")
                reason = f"supervision failed: {type(error).__name__}: {error}"
            if self._stopping:
                return
            if self._client.ready is None:
                self._give_up(reason)
                return
            now = time.monotonic()
            failures.append(now)
            while failures[0] < now - self._policy.window:
                failures.popleft()
            if len(failures) >= self._policy.max_failures:
                minutes = self._policy.window / 60
                self._give_up(f"the engine failed {len(failures)} times within {minutes:g} minutes; last: {reason}")
                return
            backoff = self._policy.backoff(len(failures))
            _log.error("engine died", reason=reason, failures=len(failures), restart_in=backoff)
            await asyncio.sleep(backoff)
            self._metrics.observe_restart()

    def _give_up(self, reason: str) -> None:
        self._client.fail(reason)
        self._on_give_up(reason)

    async def _run_once(self) -> str:
        """One life of an engine process; returns why it ended, and only after it has been reaped."""
        ours, theirs = socket.socketpair()
        stamp = ProgressStamp.create()
        try:
            with theirs:
                self._process = await self._spawn(theirs.fileno(), stamp.fd)
            return await self._watch(self._process, ours, stamp)
        except OSError as error:
            return f"the engine process could not be started: {error}"
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

    async def _watch(self, process: asyncio.subprocess.Process, sock: socket.socket, stamp: ProgressStamp) -> str:
        serving = asyncio.create_task(self._serve(sock, stamp))
        exited = asyncio.create_task(process.wait())
        try:
            await asyncio.wait([serving, exited], return_when=asyncio.FIRST_COMPLETED)
            # The socket may hold last words after the exit, and the exit comes a moment after the socket's end.
            await asyncio.wait([serving, exited], timeout=self._policy.exit_grace)
            last_words = serving.result() if serving.done() else None
            return last_words or _describe_exit(process.returncode)
        finally:
            # The process first: as long as it lives, closing the connection may wait for it to read.
            await self._reap(process)
            await asyncio.wait([serving, exited], timeout=self._policy.exit_grace)
            for task in (serving, exited):
                task.cancel()
            await asyncio.gather(serving, exited, return_exceptions=True)

    async def _serve(self, sock: socket.socket, stamp: ProgressStamp) -> str | None:
        return await self._client.serve(await SocketConnection.open(sock, self._config), stamp)

    async def _reap(self, process: asyncio.subprocess.Process) -> None:
        for end in (process.terminate, process.kill):
            if process.returncode is not None:
                return
            with contextlib.suppress(ProcessLookupError):
                end()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), self._policy.exit_grace)


def _describe_exit(returncode: int | None) -> str:
    if returncode is None:
        return "the engine process closed its connection and does not exit"
    if returncode < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-returncode).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return f"the engine process was ended by {name}{hint}"
    return f"the engine process exited with code {returncode}"
