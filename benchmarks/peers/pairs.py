"""Two checkouts of ours, pair by pair: both servers stand, and each request goes to one and then to the other.

python -m benchmarks.peers.pairs ../before --pairs 20

A machine whose speed wanders by a tenth within a minute hides what a change costs from runs that follow each other; the
ratio of two answers given within a second of each other shows it. The order turns with every pair. Rows: a pair and
workload each, and a table of median ratios with their quartiles; above 1 this checkout is slower.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from app.store import SilentProgress, Store, pull
from app.text.tokenizer import Tokenizer
from benchmarks.peers.catalogue import ROOT
from benchmarks.peers.process import Child, free_port, running
from benchmarks.peers.prompts import Sizes, reference_text, rounds
from benchmarks.peers.rounds import wait_healthy
from benchmarks.peers.targets import HttpTarget
from benchmarks.peers.workloads import WORKLOADS, warm_up
from benchmarks.rows import context

_MODEL = "smollm2-135m"
_START_TIMEOUT = 120.0
_SIZES = Sizes(single=1, many=16)
"""One request and one batch a pair: the shorter each is, the nearer in time are the two that are compared."""


@click.command()
@click.argument("before", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--pairs", default=20, show_default=True, type=click.IntRange(min=1))
@click.option("--starts", default=5, show_default=True, type=click.IntRange(min=0), help="Pairs of starts measured.")
@click.option("--workloads", default=",".join(WORKLOADS), show_default=True)
@click.option("--options", default="", help="Options of both servers, as one string.")
@click.option("--output", type=click.Path(path_type=Path), help="Append raw rows to this file.")
def main(before: Path, pairs: int, starts: int, workloads: str, options: str, output: Path | None) -> None:
    """Compares this checkout with BEFORE, another one, both run by this interpreter."""
    checkouts = {"before": before.resolve(), "now": ROOT}
    common = context("pairs") | {"before_commit": _commit(checkouts["before"]), "options": options, "model": _MODEL}
    ratios: dict[str, list[float]] = defaultdict(list)
    measured = itertools.chain(
        _starts(checkouts, starts, options), _asked(checkouts, pairs, workloads.split(","), options)
    )
    for row in measured:
        ratios[row["measure"]].append(row["now"] / row["before"])
        if output is not None:
            with output.open("a") as file:
                file.write(json.dumps(common | row) + "\n")
    _print(ratios)


def _commit(checkout: Path) -> str:
    shown = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, text=True)
    return shown.stdout.strip()


@contextlib.contextmanager
def _server(checkout: Path, options: str) -> Iterator[tuple[Child, HttpTarget]]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), "--log-level", "warning"]
    with tempfile.TemporaryDirectory(prefix="tuili-pairs-") as directory:
        # What is installed may be the other checkout.
        log, env = Path(directory) / "serve.log", {"PYTHONPATH": str(checkout)}
        with running([*command, *options.split()], env, log, cwd=checkout) as child:
            wait_healthy(child, f"{url}/health", _START_TIMEOUT)
            yield child, HttpTarget(url, _MODEL)


def _starts(checkouts: dict[str, Path], pairs: int, options: str) -> Iterator[dict[str, Any]]:
    for pair in range(pairs):
        seconds = {}
        for name in _order(pair):
            begun = time.perf_counter()
            with _server(checkouts[name], options):
                seconds[name] = time.perf_counter() - begun
        yield {"measure": "start s", "pair": pair, **seconds}


def _asked(checkouts: dict[str, Path], pairs: int, workloads: Sequence[str], options: str) -> Iterator[dict[str, Any]]:
    tokenizer = Tokenizer.load(pull(_MODEL, Store(), SilentProgress()).tokenizer_file)
    asked = rounds(reference_text(), lambda text: len(tokenizer.encode(text)), _SIZES)
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(_server(path, options)) for name, path in checkouts.items()}
        warmup = next(asked)
        for _, target in servers.values():
            warm_up(target, warmup, _SIZES)
        for pair, prompts in zip(range(pairs), asked, strict=False):
            for workload in workloads:
                found = {n: WORKLOADS[workload](servers[n][1], prompts, _SIZES) for n in _order(pair)}
                for field in ("duration_s", "ttft_ms"):
                    yield {"measure": f"{workload} {field}", "pair": pair} | {n: f[field] for n, f in found.items()}
        memory = {name: child.note_memory() / 1e6 for name, (child, _) in servers.items()}
        yield {"measure": "peak_rss_mb", "pair": 0, **memory}


def _order(pair: int) -> tuple[str, str]:
    return ("before", "now") if pair % 2 == 0 else ("now", "before")


def _print(ratios: dict[str, list[float]]) -> None:
    table = Table("measure", "now / before", "quartiles", "pairs")
    for measure, values in ratios.items():
        low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
        table.add_row(measure, f"{middle:.3f}", f"{low:.3f} to {high:.3f}", str(len(values)))
    Console().print(table)


if __name__ == "__main__":
    main()
