"""From `tuili serve` to a first answer, and the peak memory of server and engine.

    python -m benchmarks.startup [MODEL] [--rounds 3] [--save]

The first start packs the weights, in a home of its own ("cold"); the others find them packed ("warm").
The model must have been pulled. Memory counts the KV cache's written pages; nothing has been written but one token.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import httpx

from app.store.home import Store
from benchmarks.rows import RESULTS, context, report

_SECONDS = 120.0


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _first_answer(url: str, model: str, server: subprocess.Popen[bytes]) -> None:
    body = {"model": model, "prompt": "Hello", "max_tokens": 1}
    deadline = time.monotonic() + _SECONDS
    with httpx.Client() as client:
        while server.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if client.post(f"{url}/v1/completions", json=body, timeout=_SECONDS).status_code == 200:
                    return
            time.sleep(0.01)
    raise RuntimeError("the server gave no answer")


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))


def _start(model: str, home: str) -> dict[str, float]:
    port = _free_port()
    command = [sys.executable, "-m", "app.cli", "serve", "--model", model, "--port", str(port)]
    env = {**os.environ, "TUILI_HOME": home}
    began = time.perf_counter()
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _first_answer(f"http://127.0.0.1:{port}", model, server)
            seconds = time.perf_counter() - began
            children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
            engine = sum(_peak_bytes(int(pid)) for pid in children)
            return {
                "first_answer_s": round(seconds, 2),
                "server_mb": _peak_bytes(server.pid) >> 20,
                "engine_mb": engine >> 20,
            }
        finally:
            server.send_signal(signal.SIGTERM)


@click.command()
@click.argument("model", default="smollm2-135m")
@click.option("--rounds", default=3, help="Warm starts.")
@click.option("--save", is_flag=True, help="Keep the rows in benchmarks/results/startup.jsonl.")
def main(model: str, rounds: int, save: bool) -> None:
    """Starts the server on MODEL again and again."""
    output = RESULTS / "startup.jsonl" if save else None
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "models").symlink_to(Store().home / "models")
        for index in range(rounds + 1):
            row = {**context("startup"), "model": model, "start": "warm" if index else "cold"}
            report({**row, **_start(model, home)}, output)


if __name__ == "__main__":
    main()
