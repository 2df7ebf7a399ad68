"""Runs a server under load and a Prometheus that scrapes it, and asks Prometheus every query of the dashboard.

``make dashboard-check`` runs it; it needs a ``prometheus`` on the path (Debian package prometheus). The scrape
configuration and the rules are those of ``deploy/prometheus``, the addresses apart. It fails when a query has no
answer.
"""
# ruff: noqa: T201 - a program that tells what it does

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

DEPLOY = Path(__file__).resolve().parent
CLIENTS, LOAD_SECONDS = 6, 45.0
READY_SECONDS = 120.0
VARIABLES = {"$__rate_interval": "30s", "$instance": ".*", "$model_name": ".*"}


def main() -> int:
    """Returns the exit code: 0 when every query has an answer, 2 when this machine cannot tell."""
    if not shutil.which("prometheus"):
        print("dashboard-check needs prometheus on the path (Debian package prometheus)", file=sys.stderr)
        return 2
    server, prometheus = (f"127.0.0.1:{port}" for port in _free_ports(2))
    with tempfile.TemporaryDirectory() as directory, _serving(server), _scraping(Path(directory), server, prometheus):
        print(f"dashboard-check: {CLIENTS} clients for {LOAD_SECONDS:.0f} s", flush=True)
        _load(server)
        empty = _ask_dashboard(prometheus) + _ask_alerts(prometheus)
    if empty:
        print("dashboard-check: FAILED, no answer: " + ", ".join(empty), file=sys.stderr)
        return 1
    print("dashboard-check: every query has an answer")
    return 0


@contextmanager
def _serving(address: str) -> Iterator[None]:
    host, port = address.split(":")
    options = ["--host", host, "--port", port, "--log-level", "error", "--max-num-seqs", "4"]
    with _process([sys.executable, "-m", "app.cli", "serve", *options], f"http://{address}/readyz"):
        yield


@contextmanager
def _scraping(directory: Path, server: str, address: str) -> Iterator[None]:
    shutil.copy(DEPLOY / "prometheus/alerts.yml", directory)
    config = (DEPLOY / "prometheus/prometheus.yml").read_text()
    key = directory / "metrics_key"
    key.write_text("any")  # the server here asks for none, but Prometheus insists on a file
    config = config.replace("tuili:8000", server).replace("/run/secrets/metrics_key", str(key))
    (directory / "prometheus.yml").write_text(config)
    options = [f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"]
    options += [f"--web.listen-address={address}", "--log.level=error"]
    with _process(["prometheus", *options], f"http://{address}/-/ready"):
        yield


@contextmanager
def _process(command: list[str], ready_url: str) -> Iterator[None]:
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not _answers(ready_url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not get ready")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(60)


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=5):  # noqa: S310 - our own; OSError: not there, or 503
        return True
    return False


def _load(server: str) -> None:
    """Puts the server under load: more clients than sequences run at once, a shared prefix, some bad requests."""
    until = time.monotonic() + LOAD_SECONDS
    threads = [threading.Thread(target=_client, args=(server, number, until)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _client(server: str, number: int, until: float) -> None:
    system = "You answer briefly and in plain words, and you never repeat the question. " * 4
    count = 0
    while time.monotonic() < until:
        count += 1
        messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": f"Tell me something about the number {number * 1000 + count}."},
        ]
        body: dict[str, Any] = {"messages": messages, "max_tokens": 12, "stream": True, "ignore_eos": True}
        if count % 5 == 0:
            body["temperature"] = -1.0
        url = f"http://{server}/v1/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with suppress(urllib.error.HTTPError), urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
            answer.read()


def _ask_dashboard(prometheus: str) -> list[str]:
    """Prints each panel's values; returns the titles of the queries without one."""
    dashboard = json.loads((DEPLOY / "grafana/dashboards/tuili.json").read_text())
    empty = []
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"]
            for variable, value in VARIABLES.items():
                query = query.replace(variable, value)
            title = f"{panel['title']} / {target['legendFormat'] or target['refId']}"
            answers = _query(prometheus, query)
            print(f"  {title:<44} {'  '.join(answers) or 'no data'}")
            if not answers:
                empty.append(title)
    return empty


def _ask_alerts(prometheus: str) -> list[str]:
    """Returns the rules that Prometheus could not evaluate."""
    with urllib.request.urlopen(f"http://{prometheus}/api/v1/rules", timeout=10) as answer:
        groups = json.load(answer)["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    print("  alerts: " + ", ".join(f"{rule['name']} {rule['state']}" for rule in rules))
    return [rule["name"] for rule in rules if rule["health"] != "ok"]


def _query(prometheus: str, query: str) -> list[str]:
    """The values, labelled, of an instant query; what is not a number counts as none."""
    parameters = urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(f"http://{prometheus}/api/v1/query?{parameters}", timeout=10) as answer:
        results = json.load(answer)["data"]["result"]
    values = [(result["metric"], float(result["value"][1])) for result in results]
    return [f"{_label(metric)}{value:.4g}" for metric, value in values if math.isfinite(value)]


def _label(metric: dict[str, str]) -> str:
    shown = [value for name, value in metric.items() if re.fullmatch("outcome|status|reason", name)]
    return "".join(f"{value} " for value in shown)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [int(sock.getsockname()[1]) for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


if __name__ == "__main__":
    sys.exit(main())
