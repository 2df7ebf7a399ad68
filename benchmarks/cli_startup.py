"""How long `tuili --help` takes, as a user waits for it: one cold process after another. The last line is JSON.

python benchmarks/cli_startup.py --runs 21 >> benchmarks/results/cli_startup.jsonl
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time

import click

from app.version import __version__


@click.command()
@click.option("--runs", default=21, show_default=True, type=click.IntRange(min=4), help="Processes to time.")
def main(runs: int) -> None:
    """Times the command-line interface of the app that this Python imports."""
    command = [sys.executable, "-m", "app.cli", "--help"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # bytecode is written once, at install time
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    p20, _, _, p80 = statistics.quantiles(seconds, n=5)
    row = {
        "bench": "cli_startup",
        "version": __version__,
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "runs": runs,
        "p20_ms": round(p20 * 1e3, 1),
        "p50_ms": round(statistics.median(seconds) * 1e3, 1),
        "p80_ms": round(p80 * 1e3, 1),
        "max_ms": round(max(seconds) * 1e3, 1),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
