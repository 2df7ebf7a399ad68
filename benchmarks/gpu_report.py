"""All GPU figures by one command, on a box that has torch, triton, numpy, safetensors and msgspec and nothing else.

    python -m benchmarks.gpu_report --output benchmarks/results/gpu.jsonl

Stages run one after the other as programs of their own, each with a time-out: what crashes or hangs costs its own stage
alone. Rows are appended as they come; the last line on standard output is a JSON summary. All of it takes ten minutes
at most; ``--only`` and ``--skip`` choose stages, ``--trial`` runs tiny shapes on a CPU to see that all works.

Where msgspec is missing, bring it along: ``pip download --no-deps --only-binary :all: --python-version 3.12 msgspec``,
unpack the wheel into a directory and name that in ``PYTHONPATH``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import rows
from benchmarks.gpu.stage import read_rows

_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class StageCommand:
    """A program of ``benchmarks.gpu``."""

    name: str
    module: str
    timeout_s: float
    options: tuple[str, ...] = ()
    trial_options: tuple[str, ...] = ()
    """Options in place of those, for a trial."""


_TINY_ENGINE = ("--model", "tiny", "--batches", "1", "4", "--context", "32", "--prefills", "64")
_TINY_TIMELINE = _TINY_ENGINE
_TINY_WORKLOAD = ("--model", "tiny", "--requests", "4", "--prompt", "16", "--output-tokens", "8")


def _engine(model: str, kind: str) -> StageCommand:
    options = ("--model", model, "--format", kind)
    on_cpu = "int8" if kind == "int8 weights" else kind  # which are a GPU's alone
    return StageCommand(f"{model} {kind}", "engine", 90, options, (*_TINY_ENGINE, "--format", on_cpu))


def _timeline(kind: str) -> StageCommand:
    # A few layers: the profiler is slow, and every layer is like the other.
    options = ("--layers", "8", "--format", kind)
    return StageCommand(f"timeline {kind}", "timeline", 60, options, (*_TINY_TIMELINE, "--format", kind))


STAGES = (
    StageCommand("ceilings", "ceilings", 45),
    StageCommand("correctness", "correctness", 90, ("--processes", "8"), ("--smallest",)),
    _engine("qwen3-8b", "bf16"),
    StageCommand("headline", "headline", 120, (), _TINY_WORKLOAD),
    _engine("qwen3-8b", "int8"),
    _engine("qwen3-8b", "int8, int8 KV"),
    _timeline("bf16"),
    _timeline("int8, int8 KV"),
    StageCommand("transformers", "transformers_peer", 150, (), _TINY_WORKLOAD),
    *(_engine("llama-3.1-8b", kind) for kind in ("bf16", "int8", "int8, int8 KV")),
    StageCommand("kernels", "kernel_table", 90, (), ("--model", "tiny", "--batches", "1", "--context", "32")),
    _engine("qwen3-8b", "int8 weights"),
    StageCommand(
        "qwen3-8b bf16 eager",
        "engine",
        60,
        ("--model", "qwen3-8b", "--eager", "--batches", "1", "256", "--prefills", "1024"),
        (*_TINY_ENGINE, "--eager"),
    ),
    StageCommand("sanitizer", "sanitizer", 60),
)
"""What is wanted most first: where the time runs out, the last ones are missing."""


def main() -> int:
    """Runs the stages; 1 if one of them failed."""
    args = _parse()
    output: Path = args.output
    output.parent.mkdir(parents=True, exist_ok=True)
    done = len(read_rows(output))
    rows.report(rows.context("gpu_report"), output)
    deadline = time.monotonic() + args.budget
    chosen = [stage for stage in STAGES if stage.name in (args.only or _names()) and stage.name not in args.skip]
    outcomes = {stage.name: _run(stage, args, output, deadline) for stage in chosen}
    written = read_rows(output)[done:]
    print(msgspec.json.encode({"stages": outcomes, "rows": len(written), **_headline(written)}).decode())
    return 0 if all(outcome in ("ok", "no time left") for outcome in outcomes.values()) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=rows.RESULTS / "gpu.jsonl")
    parser.add_argument("--budget", type=float, default=570.0, help="seconds for all stages together")
    parser.add_argument("--only", nargs="+", choices=_names())
    parser.add_argument("--skip", nargs="+", choices=_names(), default=[])
    parser.add_argument("--trial", action="store_true", help="tiny shapes on a CPU: figures mean nothing")
    return parser.parse_args()


def _names() -> list[str]:
    return [stage.name for stage in STAGES]


def _run(stage: StageCommand, args: argparse.Namespace, output: Path, deadline: float) -> str:
    """Runs a stage and says how it ended; the row that says so is written too."""
    left = deadline - time.monotonic()
    if left < 10:
        return "no time left"
    options: Sequence[str] = stage.options
    if args.trial:
        options = (*(stage.trial_options or stage.options), "--device", "cpu")
    command = [sys.executable, "-m", f"benchmarks.gpu.{stage.module}", "--output", str(output), *options]
    started = time.monotonic()
    try:
        code = subprocess.run(
            command, cwd=_ROOT, env=_environment(args.trial), timeout=min(stage.timeout_s, left), check=False
        ).returncode
        outcome = "ok" if code == 0 else f"exit code {code}"
    except subprocess.TimeoutExpired:
        outcome = "timed out"
    seconds = round(time.monotonic() - started, 1)
    rows.report({"stage": stage.name, "outcome": outcome, "seconds": seconds}, output)
    return outcome


def _environment(trial: bool) -> dict[str, str]:
    """Environment of a stage's process; a trial's kernels are interpreted."""
    return {**os.environ, "TRITON_INTERPRET": "1" if trial else "0"}


def _headline(written: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures that a reader looks for first."""
    found: dict[str, Any] = {}
    for row in written:
        if row.get("stage") == "headline" and "seconds" in row and "requests" in row:
            found["headline_s"] = row["seconds"]
        if row.get("stage") == "timeline" and "gap_us_p50" in row:
            found[f"{row['model']} {row['format']} gap_us {row['decode']}"] = row["gap_us_p50"]
        if row.get("stage") == "engine" and "decode" in row:
            eager = " eager" if row["eager"] else ""
            found[f"{row['model']} {row['format']}{eager} decode {row['decode']}"] = row["tokens_per_s"]
    return found


if __name__ == "__main__":
    sys.exit(main())
