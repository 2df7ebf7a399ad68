"""A real server whose processes hang or are killed: it goes on, or ends and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import psutil
import pytest

from tests.integration.server import Server, start_server

STREAM = {"prompt": "Once", "max_tokens": 450, "temperature": 0, "ignore_eos": True, "stream": True}
WAIT_SECONDS = 60.0
needs_prctl = pytest.mark.skipif(sys.platform != "linux", reason="only the kernel ends a process that is stopped")


@contextlib.contextmanager
def hanging(tiny_llama: Path, tmp_path: Path, *flags: str, stopped: list[psutil.Process]) -> Iterator[Server]:
    """A server that finds a stall within seconds; what is left in ``stopped`` is killed in the end."""
    (tmp_path / "tmp").mkdir()
    options = ("--model", str(tiny_llama), "--dtype", "float32", "--stall-timeout", "4", *flags)
    try:
        with start_server(*options, env={"TMPDIR": str(tmp_path / "tmp")}) as server:
            yield server
    finally:
        for process in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def gone(processes: Sequence[psutil.Process]) -> bool:
    """Whether all ended within a bounded time; whoever adopts them may take a while to reap them."""
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        if not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
            return True
        time.sleep(0.05)
    return False


def wait_ready(http: httpx.Client) -> None:
    """Until readiness, with liveness all along."""
    end = time.monotonic() + WAIT_SECONDS
    while http.get("/readyz").status_code != 200:
        assert http.get("/livez").status_code == 200
        assert time.monotonic() < end
        time.sleep(0.05)


def counted(http: httpx.Client, name: str) -> float:
    (line,) = [line for line in http.get("/metrics").text.splitlines() if line.startswith(f"{name}{{")]
    return float(line.split()[-1])


def test_a_stopped_process_is_replaced_with_all_ranks(tiny_llama: Path, tmp_path: Path) -> None:
    """First the engine, then a rank of the one that took its place."""
    stopped: list[psutil.Process] = []
    with (
        hanging(tiny_llama, tmp_path, "--tensor-parallel-size", "2", stopped=stopped) as server,
        httpx.Client(base_url=server.url, timeout=WAIT_SECONDS) as http,
    ):
        for count, victim in enumerate(("engine", "rank")):
            before = psutil.Process(server.pid).children(recursive=True)
            assert len(before) == 2
            stopped.append(before[count])
            with http.stream("POST", "/v1/completions", json=STREAM) as answer:
                lines = answer.iter_lines()
                next(lines)
                stopped[-1].suspend()
                rest = [line for line in lines if line]
            assert '"engine_restarted"' in rest[-1], victim
            wait_ready(http)
            assert gone(before)
            assert http.post("/v1/completions", json={"prompt": "Once", "max_tokens": 3}).status_code == 200
            assert counted(http, "tuili_engine_stalls_total") == count + 1
            assert counted(http, "tuili_engine_restarts_total") == count + 1
        after = psutil.Process(server.pid).children(recursive=True)
        assert len(after) == 2
        assert server.stop() == 0
        assert gone(after)
        assert sum("the engine showed no progress for" in line for line in server.lines) >= 2
    assert not list((tmp_path / "tmp").iterdir()), "whoever was killed left files"


@needs_prctl
def test_no_process_outlives_a_killed_server(tiny_llama: Path, tmp_path: Path) -> None:
    stopped: list[psutil.Process] = []
    with hanging(tiny_llama, tmp_path, "--tensor-parallel-size", "2", stopped=stopped) as server:
        stopped += psutil.Process(server.pid).children(recursive=True)
        assert len(stopped) == 2
        for process in stopped:
            process.suspend()
        server.process.kill()
        server.process.wait()
        assert gone(stopped)
    assert not list((tmp_path / "tmp").iterdir())


# The engine alone is what ``test_a_drain_ends_the_streams_of_a_stopped_engine`` stops.
@pytest.mark.parametrize("victims", [[1], [0, 1]], ids=["rank", "both"])
def test_sigterm_ends_a_server_whose_idle_engine_is_stopped(
    tiny_llama: Path, tmp_path: Path, victims: list[int]
) -> None:
    stopped: list[psutil.Process] = []
    with hanging(tiny_llama, tmp_path, "--tensor-parallel-size", "2", stopped=stopped) as server:
        stopped += psutil.Process(server.pid).children(recursive=True)
        for index in victims:
            stopped[index].suspend()
        assert server.stop() == 0
        assert gone(stopped)


def test_a_drain_ends_the_streams_of_a_stopped_engine(tiny_llama: Path, tmp_path: Path) -> None:
    """The drain's deadline is before the stall's."""
    stopped: list[psutil.Process] = []
    flags = ("--stall-timeout", "600", "--drain-timeout", "1")
    with (
        hanging(tiny_llama, tmp_path, *flags, stopped=stopped) as server,
        httpx.Client(base_url=server.url, timeout=WAIT_SECONDS) as http,
    ):
        stopped += psutil.Process(server.pid).children(recursive=True)
        with http.stream("POST", "/v1/completions", json=STREAM) as answer:
            lines = answer.iter_lines()
            next(lines)
            stopped[0].suspend()
            os.kill(server.pid, signal.SIGTERM)
            rest = [line for line in lines if line]
        assert '"engine_restarted"' in rest[-1]
        assert server.process.wait(WAIT_SECONDS) == 0
        assert gone(stopped)
