"""Starts `tuili serve` as a user does and reads off its ready line where it listens."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import psutil

READY = re.compile(r"ready: (http://127\.0\.0\.1:(\d+))")
START_TIMEOUT = 120.0
STOP_TIMEOUT = 45.0


@dataclass
class Server:
    """A running server process."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    url: str = ""
    _ready: threading.Event = field(default_factory=threading.Event)
    _reader: threading.Thread | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    def start_reading(self) -> None:
        """Collects the process's output in a thread, until the process closes it."""
        self._reader = threading.Thread(target=self._read_output, daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Takes in the rest of the output of a process that ended."""
        if self._reader is not None:
            self._reader.join()

    def _read_output(self) -> None:
        if self.process.stdout is None:
            raise RuntimeError("the server's output is not piped")
        with self.process.stdout as stdout:
            self._read_lines(stdout)

    def _read_lines(self, stdout: Iterable[str]) -> None:
        for line in stdout:
            self.lines.append(line)
            if found := READY.search(line):
                self.url = found[1]
                self._ready.set()
        self._ready.set()

    def wait_ready(self) -> None:
        """Blocks until the ready line.

        Raises:
            AssertionError: the server ended or did not get ready in time; the message holds its output.
        """
        if not self._ready.wait(START_TIMEOUT) or not self.url:
            raise AssertionError("server did not get ready:\n" + "".join(self.lines))

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """Signals the process and waits for its exit code."""
        self.process.send_signal(sig)
        return self.process.wait(STOP_TIMEOUT)


def spawn(*args: str, env: dict[str, str] | None = None) -> Server:
    """Starts ``tuili serve --port 0 ARGS`` without waiting for anything."""
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "serve", "--port", "0", "--log-format", "json", "--integrity-checks", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(env or {})},
    )
    server = Server(process)
    server.start_reading()
    return server


@contextlib.contextmanager
def start_server(*args: str, env: dict[str, str] | None = None) -> Iterator[Server]:
    """A ready server; stopped at the end, killed if it does not stop."""
    server = spawn(*args, env=env)
    try:
        server.wait_ready()
        yield server
    finally:
        if server.process.poll() is None:
            try:
                server.stop()
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()
                raise
        server.close()


def engine_of(pid: int) -> psutil.Process:
    """The engine of a server of one model; a process that tries grammars may be beside it."""
    (engine,) = [child for child in psutil.Process(pid).children() if "app.worker" in " ".join(child.cmdline())]
    return engine
