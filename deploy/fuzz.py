"""Serves a model and throws at it what schemathesis makes of the server's own OpenAPI document.

``make fuzz`` runs it with thousands of cases, ``make fuzz-quick`` with a hundred or two. It fails when an answer is a
fault of the server (500 and above, other than 503 and 504) or not what the document declares, when the engine was
started again, or when a plain request gets no answer afterwards.

The model has random weights, two layers and the bytes as vocabulary; server, engine and their processes are those of
every other model. What the document cannot say (one field needs another, a limit that is a setting, 1.0 is no integer)
is refused with a 4xx that it declares, so whether everything is accepted that the document allows is not asked.
"""
# ruff: noqa: T201 - a program that tells what it does

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.byte_tokenizer import CHATML_TEMPLATE, VOCAB_SIZE, write_byte_tokenizer

START_SECONDS, STOP_SECONDS = 120.0, 60.0
# Short answers, so that the time goes into cases.
OPTIONS = ["--load-format", "dummy", "--max-model-len", "48", "--max-n", "2", "--request-timeout", "20"]
OPTIONS += ["--integrity-checks", "--threads", "1", "--log-level", "error", "--host", "127.0.0.1", "--port", "0"]
CONFIG = '[checks]\nnot_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503, 504]\n'
KEY = secrets.token_hex(16)
CHECKS = ["--exclude-checks", "positive_data_acceptance", "--exclude-path", "/v1/engine/live"]
_READY = re.compile(r"ready: (http://\S+)")
_COUNTED = re.compile(r'^tuili_http_requests_total\{.*status="(\d+)"\} (\S+)$', re.MULTILINE)
_RESTARTS = re.compile(r"^tuili_engine_restarts_total\{.*\} (\S+)$", re.MULTILINE)


def main() -> int:
    """Returns the exit code: 0 when nothing was found."""
    parser = argparse.ArgumentParser(description="Fuzz a served model through its OpenAPI document.")
    parser.add_argument("--examples", type=int, default=100, help="random cases a route, beside those at the bounds")
    parser.add_argument("--phases", default="coverage,fuzzing", help="phases of schemathesis")
    parser.add_argument("--seed", help="to repeat a run")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, _serving(Path(directory)) as url:
        command = _command(Path(directory), url, given.examples, given.phases, given.seed)
        found = ["schemathesis failed"] if subprocess.run(command, cwd=directory).returncode else []
        statuses, restarts = _counted(url)
        found += _wrong(url, statuses, restarts)
    shown = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    print(f"fuzz: {statuses.total()} answers ({shown}), {restarts} restarts: {'; '.join(found) or 'nothing found'}")
    return 1 if found else 0


@contextmanager
def _serving(directory: Path) -> Iterator[str]:
    model = _write_model(directory / "tiny")
    command = [sys.executable, "-m", "app.cli", "serve", "--model", str(model), *OPTIONS]
    environment = {**os.environ, "TUILI_API_KEYS": f"fuzz:admin:{KEY}"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    ready, urls = threading.Event(), list[str]()

    def read() -> None:
        for line in process.stdout or ():
            if found := _READY.search(line):
                urls.append(found[1])
                ready.set()
            elif urls and not line.startswith("  curl"):
                print("server:", line, end="")
        ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        if not ready.wait(START_SECONDS) or not urls:
            raise RuntimeError("the server did not get ready")
        yield urls[0]
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)
        reader.join()


def _write_model(directory: Path) -> Path:
    directory.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    (directory / "config.json").write_text(json.dumps(config))
    write_byte_tokenizer(directory)
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML_TEMPLATE}))
    return directory


def _command(directory: Path, url: str, examples: int, phases: str, seed: str | None) -> list[str]:
    beside = Path(sys.executable).with_name("schemathesis")
    program = str(beside) if beside.exists() else shutil.which("schemathesis")
    if program is None:
        raise RuntimeError("schemathesis is missing: pip install -r deploy/requirements.txt")
    config = directory / "schemathesis.toml"
    config.write_text(CONFIG)
    options = ["--phases", phases, "--max-examples", str(examples), "--request-timeout", "60", *CHECKS]
    options += ["--header", f"Authorization: Bearer {KEY}"]
    options += ["--continue-on-failure", "--generation-database", "none", "--warnings", "off"]
    options += [] if seed is None else ["--seed", seed]
    return [program, "--config-file", str(config), "run", f"{url}/openapi.json", *options]


def _counted(url: str) -> tuple[Counter[int], int]:
    """Number of answers by status, and of starts of the engine after the first."""
    page = _get(url, "/metrics").decode()
    statuses: Counter[int] = Counter()
    for status, count in _COUNTED.findall(page):
        statuses[int(status)] += int(float(count))
    return statuses, int(sum(float(count) for count in _RESTARTS.findall(page)))


def _wrong(url: str, statuses: Counter[int], restarts: int) -> Iterator[str]:
    if faults := {status for status in statuses if status >= 500 and status not in (503, 504)}:
        yield f"answers with {sorted(faults)}"
    if restarts:
        yield "the engine was started again"
    body = json.dumps({"prompt": "Once", "max_tokens": 4, "temperature": 0}).encode()
    answer: dict[str, Any] = json.loads(_get(url, "/v1/completions", body))
    if answer["usage"]["completion_tokens"] < 1:
        yield "a plain request got no tokens afterwards"


def _get(url: str, path: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(url + path, body, {"Authorization": f"Bearer {KEY}"})  # noqa: S310 - our own server
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        content: bytes = answer.read()
        return content


if __name__ == "__main__":
    sys.exit(main())
