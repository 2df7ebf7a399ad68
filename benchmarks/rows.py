"""Rows of figures: what was run where, on stdout and in ``benchmarks/results/``."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from app.version import __version__

RESULTS = Path(__file__).parent / "results"


def context(bench: str) -> dict[str, Any]:
    """What a row begins with. The load average is the one before the run: other work disturbs a measurement."""
    return {
        "bench": bench,
        "version": __version__,
        "commit": _git("rev-parse", "--short", "HEAD"),
        "modified": bool(_git("status", "--porcelain", "--untracked-files=no", "app")),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {processor()}",
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def report(row: Mapping[str, Any], output: Path | None) -> None:
    """Prints a row as one line of JSON and appends it to ``output``."""
    line = msgspec.json.encode(row)
    if output is not None:
        with output.open("ab") as file:
            file.write(line + b"\n")
    print(line.decode(), flush=True)


def processor() -> str:
    """Processor's name and the instruction sets that matter here."""
    if not Path("/proc/cpuinfo").exists():
        return platform.processor()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(part for line in lines if len(part := [p.strip() for p in line.split(":", 1)]) == 2)
    flags = set(fields.get("flags", "").split())
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
    return " ".join([fields.get("model name", "unknown"), *(flag for flag in wanted if flag in flags)])


def _git(*args: str) -> str:
    try:
        return subprocess.run(
            ["git", *args], capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False
        ).stdout.strip()
    except FileNotFoundError:
        return ""
