"""Starts each peer that this machine has and ours in turn, and puts them side by side. The last line is JSON.

python -m benchmarks.peers --rounds 3 --save
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from app.store import SilentProgress, Store, StoreError, pull
from app.text.tokenizer import Tokenizer
from benchmarks.peers import install as installer
from benchmarks.peers.catalogue import PEERS, ROOT, Homes, Peer
from benchmarks.peers.models import Models
from benchmarks.peers.process import PeerError
from benchmarks.peers.prompts import PromptError, Sizes, reference_text, rounds
from benchmarks.peers.report import best, medians, notes, print_table, ratios
from benchmarks.peers.rounds import Bench
from benchmarks.peers.workloads import WORKLOADS
from benchmarks.rows import processor

MODEL = "smollm2-135m"
RESULTS = ROOT / "benchmarks" / "results" / "peers.jsonl"
SHORT = Sizes(
    single=1, many=4, concurrency=4, prompt=32, output=8, long=128, prefix=64, suffix=8, shared=4, shared_output=4
)
_DEFAULT_DIR = Path("~/.cache/tuili/peers")


@click.group(invoke_without_command=True)
@click.option("--rounds", "num_rounds", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--only", default="", help="Comma-separated names or systems; all when absent.")
@click.option("--skip", default="", help="Comma-separated names or systems to leave out.")
@click.option("--workloads", default=",".join(WORKLOADS), show_default=True)
@click.option("--venv-dir", type=click.Path(path_type=Path), default=_DEFAULT_DIR, show_default=True)
@click.option("--save", is_flag=True, help=f"Append raw rows to {RESULTS.relative_to(ROOT)}.")
@click.option("--output", type=click.Path(path_type=Path), help="Append raw rows to this file instead.")
@click.option("--trial", is_flag=True, help="Tiny workloads, to see that all runs; the figures mean nothing.")
@click.pass_context
def main(
    context: click.Context,
    num_rounds: int,
    only: str,
    skip: str,
    workloads: str,
    venv_dir: Path,
    save: bool,
    output: Path | None,
    trial: bool,
) -> None:
    """Measures the peers and ours under four workloads (see benchmarks/peers/README.md)."""
    homes = Homes(venv_dir.expanduser().absolute())
    context.obj = homes
    if context.invoked_subcommand is not None:
        return
    names = [name for name in workloads.split(",") if name]
    if unknown := set(names) - set(WORKLOADS):
        raise click.BadParameter(f"no such workload: {', '.join(sorted(unknown))}")
    if trial and save:
        raise click.UsageError("--trial figures are not saved; give --output to look at the rows")
    peers = _installed(_chosen(only, skip), homes)
    if not peers:
        raise click.ClickException("nothing to measure: none of these is installed")
    target = output or (RESULTS if save else None)
    # So that a run that is told to end takes the system under way with it.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        rows = _run(_bench(homes, names, SHORT if trial else Sizes()), peers, num_rounds, trial, target)
    except (StoreError, PromptError) as e:
        raise click.ClickException(str(e)) from None
    _report(rows, num_rounds, trial)


@main.command("install")
@click.argument("systems", nargs=-1, required=True, type=click.Choice([*installer.RECIPES]))
@click.pass_obj
def install_command(homes: Homes, systems: Sequence[str]) -> None:
    """Installs peers, each into a virtual environment of its own."""
    for system in systems:
        try:
            installer.install(system, homes[system])
        except PeerError as e:
            raise click.ClickException(f"{system}: {e}") from None


@main.command("list")
@click.pass_obj
def list_command(homes: Homes) -> None:
    """Lists the peers and the versions that are installed."""
    for peer in PEERS:
        print(f"{peer.name:18} {peer.version(homes[peer.system]) or 'not installed'}")


def _chosen(only: str, skip: str) -> list[Peer]:
    wanted, unwanted = ({part for part in text.split(",") if part} for text in (only, skip))
    known = {name for peer in PEERS for name in (peer.name, peer.system)}
    if unknown := (wanted | unwanted) - known:
        raise click.BadParameter(f"no such peer: {', '.join(sorted(unknown))}")
    return [peer for peer in PEERS if (not wanted or _named(peer, wanted)) and not _named(peer, unwanted)]


def _named(peer: Peer, names: set[str]) -> bool:
    return peer.name in names or peer.system in names


def _installed(peers: Sequence[Peer], homes: Homes) -> list[tuple[Peer, str]]:
    found = []
    for peer in peers:
        version = peer.version(homes[peer.system])
        if version is None:
            _say(f"skipped {peer.name}: not installed (python -m benchmarks.peers install {peer.system})")
        else:
            found.append((peer, version))
    return found


def _bench(homes: Homes, workloads: Sequence[str], sizes: Sizes) -> Bench:
    model = pull(MODEL, Store(), SilentProgress())
    logs = homes.base / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    return Bench(
        homes, Models(model, homes.base / "models"), Tokenizer.load(model.tokenizer_file), sizes, workloads, logs
    )


def _run(
    bench: Bench, peers: Sequence[tuple[Peer, str]], num_rounds: int, trial: bool, output: Path | None
) -> list[dict[str, Any]]:
    """Every peer once a round, so that what disturbs the machine meets them all alike."""
    common = _common(bench.sizes, trial)
    prompts = rounds(reference_text(), lambda text: len(bench.tokenizer.encode(text)), bench.sizes)
    rows: list[dict[str, Any]] = []
    left_out: set[str] = set()
    for repeat, asked in zip(range(num_rounds), prompts, strict=False):
        for peer, version in peers:
            if peer.name in left_out:
                continue
            try:
                for figures in bench.measure(peer, asked):
                    who = {"name": peer.name, "peer_version": version, "weights": peer.weights, "repeat": repeat}
                    rows.append(common | who | {"in_process": peer.in_process} | figures)
                    _write(output, rows[-1])
                _say(f"round {repeat + 1} of {num_rounds}: {peer.name} done")
            except PeerError as e:
                left_out.add(peer.name)
                _say(f"left out {peer.name}: {e}")
    return rows


def _common(sizes: Sizes, trial: bool) -> dict[str, Any]:
    describe = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return {
        "bench": "peers",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": describe.stdout.strip() or None,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {processor()}",
        "python": platform.python_version(),
        "model": MODEL,
        **({"trial": True} if trial else {}),
        "sizes": dataclasses.asdict(sizes),
    }


def _write(output: Path | None, row: dict[str, Any]) -> None:
    # At once, so that a run that is cut off keeps what it has measured.
    if output is not None:
        with output.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _report(rows: Sequence[dict[str, Any]], num_rounds: int, trial: bool) -> None:
    if not rows:
        raise click.ClickException("nothing was measured")
    found = medians(rows)
    weights = {row["name"]: row["weights"] for row in rows}
    mine = [name for name in found if name.startswith("ours")]
    theirs = [name for name in found if name not in mine]
    basis = mine[0] if mine else ""
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
    print_table(console, found, basis or "ours (not run)")
    for note in notes(rows):
        _say(f"note: {note}")
    summary = {
        "bench": "peers",
        "rounds": num_rounds,
        "trial": trial,
        "commit": rows[0]["commit"],
        "machine": rows[0]["machine"],
        "medians": found,
        "ratios": {name: ratios(found, name) for name in mine},
        "best_peer": best(found, theirs),
        "best_8bit_peer": best(found, [name for name in theirs if weights[name] == "int8"]),
    }
    print(json.dumps(summary))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
