"""How long `tuili --help` takes: median of several cold processes. The last line is JSON.

python benchmarks/cli_startup.py [--runs 15]
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time

import click


@click.command()
@click.option("--runs", default=15, show_default=True, help="Processes to time.")
def main(runs: int) -> None:
    """Times the console script that is installed beside this Python."""
    command = [sys.executable, "-m", "app.cli", "--help"]
    seconds = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    cold, timed = seconds[0], sorted(seconds[1:])
    row = {
        "bench": "cli_startup",
        "python": platform.python_version(),
        "first_s": round(cold, 4),
        "p50_s": round(statistics.median(timed), 4),
        "max_s": round(timed[-1], 4),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
