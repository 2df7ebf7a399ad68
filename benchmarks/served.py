"""A real ``tuili serve`` to measure: started as a user starts it, read as Prometheus and a log reader read it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families

_READY = re.compile(r"ready: (http://127\.0\.0\.1:\d+)")
_START_TIMEOUT = 120.0
_STOP_TIMEOUT = 60.0
_POLL = 0.05


class ServerError(Exception):
    """The server did not start, stop or come to rest as it should."""


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    log: Path
    """Its output and log lines, growing."""


@contextlib.contextmanager
def served(*args: str) -> Iterator[Served]:
    """``tuili serve --host 127.0.0.1 --port 0 ARGS``, ready; drained and stopped at the end.

    Raises:
        ServerError: it did not get ready, or did not leave with exit code 0; the message holds the end of its log.
    """
    with tempfile.TemporaryDirectory(prefix="tuili-bench-") as directory:
        log = Path(directory) / "serve.log"
        command = [sys.executable, "-m", "app.cli", "serve", "--host", "127.0.0.1", "--port", "0"]
        with log.open("wb") as out:
            process = subprocess.Popen([*command, "--log-format", "json", *args], stdout=out, stderr=out)
        try:
            yield Served(_wait_ready(process, log), log)
            process.send_signal(signal.SIGTERM)
            if (code := process.wait(_STOP_TIMEOUT)) != 0:
                raise ServerError(f"the server left with exit code {code}:\n{_tail(log)}")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _wait_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        if found := _READY.search(log.read_text(errors="replace")):
            return found[1]
        time.sleep(_POLL)
    raise ServerError(f"the server did not get ready:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])


class LedgerLine(msgspec.Struct, frozen=True):
    """What the server's log says of one request that ended."""

    request_id: str
    prompt_tokens: int
    completion_tokens: int
    generated_tokens: int
    finish_reasons: list[str]
    error_code: str | None = None


def read_ledger(log: bytes) -> dict[str, LedgerLine]:
    """The ledger's lines by request id; everything else in the log is passed over."""
    lines = {}
    for line in log.splitlines():
        with contextlib.suppress(msgspec.DecodeError):
            event = msgspec.json.decode(line)
            if isinstance(event, dict) and event.get("event") == "request":
                entry = msgspec.convert(event, LedgerLine)
                lines[entry.request_id] = entry
    return lines


@dataclass(frozen=True)
class Totals:
    """What ``/metrics`` says at one moment: every series of every counter and gauge, labels summed."""

    values: dict[str, float]
    finished: dict[str, float] = field(default_factory=dict)
    """Number of choices that ended, by finish reason."""

    def __getitem__(self, name: str) -> float:
        # A counter with labels has no series before it first counts something.
        return self.values.get(name, 0.0)

    def since(self, earlier: Totals) -> Totals:
        """Differences between these totals and earlier ones."""
        values = {name: value - earlier.values.get(name, 0.0) for name, value in self.values.items()}
        finished = {reason: count - earlier.finished.get(reason, 0.0) for reason, count in self.finished.items()}
        return Totals(values, finished)


def parse_totals(page: str) -> Totals:
    """Reads a page of ``/metrics``."""
    values: dict[str, float] = {}
    finished: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
            if sample.name == "vllm:request_success_total":
                finished[sample.labels["finished_reason"]] = sample.value
    return Totals(values, finished)


async def totals(http: httpx.AsyncClient) -> Totals:
    """The server's totals now."""
    return parse_totals((await http.get("/metrics")).raise_for_status().text)


async def totals_at_rest(http: httpx.AsyncClient, patience: float = 30.0) -> Totals:
    """The server's totals once no request runs or waits and no KV block is in use.

    Raises:
        ServerError: it did not come to rest within ``patience`` seconds.
    """
    gauges = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    deadline = time.monotonic() + patience
    while True:
        found = await totals(http)
        busy: dict[str, Any] = {name: found[name] for name in gauges if found[name] != 0}
        if not busy:
            return found
        if time.monotonic() > deadline:
            raise ServerError(f"the server did not come to rest: {busy}")
        await asyncio.sleep(_POLL)
