"""Tries grammars before the engine sees them, in a process that a hostile one may only take down itself."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import select
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from app.errors import RequestError
from app.text.grammars.grammar import Grammar

MAX_WAITING: Final = 64
"""Most grammars that are tried or wait for it."""
MAX_KNOWN: Final = 4096
"""Most results that are kept; each takes less than a kilobyte."""
_FORGOTTEN_AFTER: Final = 60.0
"""Seconds after which a grammar over which the process died may be tried again."""
_MIB: Final = 1 << 20
_ENVIRONMENT: Final = {"RAYON_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True, slots=True)
class TrialBounds:
    """What one grammar may take."""

    memory: int = 512 << 20
    """Bytes of private memory of the process."""
    seconds: int = 2
    """Seconds of processor time; large schemas of real applications take a tenth of one."""
    wall_clock: float = 10.0
    """Seconds in all: a busy machine is not the grammar's fault."""


@dataclass(frozen=True, slots=True)
class _Result:
    reason: str
    """Why a grammar is refused; empty: it is not."""
    until: float | None = None
    """Instant up to which that holds; None: for ever."""


class GrammarChecker:
    """Answers whether grammars can be used. One process, one at a time, started when first asked."""

    def __init__(self, bounds: TrialBounds | None = None) -> None:
        self._bounds = bounds or TrialBounds()
        self._known: OrderedDict[bytes, _Result] = OrderedDict()
        self._running: dict[bytes, asyncio.Future[_Result]] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammars")
        self._trials = _Trials(self._bounds)

    async def check(self, grammar: Grammar, *, param: str, deadline: float | None = None) -> None:
        """Returns when a grammar can be used.

        Args:
            param: the client's name for what it comes from.
            deadline: instant of ``time.monotonic`` at which nobody needs the answer any more.

        Raises:
            RequestError: 400, it cannot; 429, too many are waiting; 504, the deadline passed.
        """
        source = grammar.source()
        key = hashlib.sha256(source.encode(errors="surrogatepass")).digest()
        result = self._recall(key)
        if result is None:
            try:
                async with asyncio.timeout_at(deadline):
                    result = await asyncio.shield(self._result(key, source))
            except TimeoutError:
                message = "The request was not done when its time was up."
                raise RequestError(message, status=504, type="server_error", code="deadline_exceeded") from None
        if result.reason:
            raise RequestError(f"{param}: {result.reason}.", code="invalid_value", param=param)

    def close(self) -> None:
        """Ends the process. Idempotent."""
        self._trials.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _recall(self, key: bytes) -> _Result | None:
        result = self._known.get(key)
        if result is None or (result.until is not None and result.until < time.monotonic()):
            return None
        self._known.move_to_end(key)
        return result

    def _result(self, key: bytes, source: str) -> asyncio.Future[_Result]:
        running = self._running.get(key)
        if running is not None:
            return running
        if len(self._running) >= MAX_WAITING:
            message = "Too many new grammars are waiting to be tried."
            raise RequestError(message, status=429, type="overloaded_error", code="overloaded", retry_after=1.0)
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._trials.run, source)
        self._running[key] = running
        running.add_done_callback(lambda done: self._keep(key, done))
        return running

    def _keep(self, key: bytes, done: asyncio.Future[_Result]) -> None:
        self._running.pop(key, None)
        if done.cancelled() or done.exception() is not None:
            return
        self._known[key] = done.result()
        self._known.move_to_end(key)
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)


class _Trials:
    """The process, from outside. Used by one thread, closed by any."""

    def __init__(self, bounds: TrialBounds) -> None:
        self._bounds = bounds
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._finalizer: weakref.finalize[[subprocess.Popen[bytes]], _Trials] | None = None

    def run(self, source: str) -> _Result:
        """What came of one grammar."""
        ends = time.monotonic() + self._bounds.wall_clock
        process = self._started()
        try:
            answer = _exchange(process, source.encode(errors="replace") + b"\n", ends)
            return _Result(answer.decode(errors="replace").rstrip("\n"))
        except (OSError, EOFError, TimeoutError) as error:
            reason = self._ended(process, timed_out=isinstance(error, TimeoutError))
            return _Result(reason, time.monotonic() + _FORGOTTEN_AFTER)

    def close(self) -> None:
        """Ends the process, now and for good."""
        with self._lock:
            self._closed = True
            if self._finalizer is not None:
                self._finalizer()

    def _started(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._closed:
                raise RequestError("The server shuts down.", status=503, type="server_error", code="shutting_down")
            if self._process is not None and self._process.poll() is None:
                return self._process
            if self._finalizer is not None:
                self._finalizer()
            path = [entry for entry in sys.path if entry]
            code = f"import sys; sys.path[:] = {path!r}; from app.text.grammars.trial import main; main()"
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, str(self._bounds.memory), str(self._bounds.seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # panics print themselves, at a length that the grammar chooses
                env=os.environ | _ENVIRONMENT,
            )
            self._finalizer = weakref.finalize(self, _end, self._process)
            return self._process

    def _ended(self, process: subprocess.Popen[bytes], *, timed_out: bool) -> str:
        if not timed_out:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1.0)  # it is dying; how, its exit code will tell
        with self._lock:
            if self._finalizer is not None:
                self._finalizer()
            self._process = None
        if timed_out or process.returncode == -signal.SIGXCPU:
            return "the grammar takes too long to compile"
        return f"the grammar cannot be compiled with {self._bounds.memory // _MIB} MiB of memory, or at all"


def _exchange(process: subprocess.Popen[bytes], line: bytes, ends: float) -> bytes:
    """The line that a process answers to another. Raises :class:`TimeoutError`, :class:`EOFError`, :class:`OSError`."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the process has no pipes")
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdin, selectors.EVENT_WRITE)
        while line:
            if not selector.select(max(0.0, ends - time.monotonic())):
                raise TimeoutError
            line = line[os.write(process.stdin.fileno(), line[: select.PIPE_BUF]) :]
        selector.unregister(process.stdin)
        selector.register(process.stdout, selectors.EVENT_READ)
        answer = b""
        while not answer.endswith(b"\n"):
            if not selector.select(max(0.0, ends - time.monotonic())):
                raise TimeoutError
            more = os.read(process.stdout.fileno(), 1 << 16)
            if not more:
                raise EOFError
            answer += more
    return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
