"""compute-sanitizer over the kernels on tiny shapes: stray accesses and races that a right result can hide."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

from benchmarks.gpu.stage import Stage

_TOOLS = ("memcheck", "racecheck")
_SUMMARY = re.compile(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (\d+)")


def main() -> None:
    """Runs the stage ``correctness`` on its smallest cases under each tool."""
    stage = Stage("sanitizer", __doc__)
    program = shutil.which("compute-sanitizer")
    if program is None or stage.device.type != "cuda":
        stage.emit({"skipped": "no compute-sanitizer" if program is None else "no GPU"})
        return
    found = 0
    for tool in _TOOLS:
        command = [program, "--tool", tool, sys.executable, "-m", "benchmarks.gpu.correctness", "--smallest"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        counts = [int(count) for count in _SUMMARY.findall(run.stdout)]
        if not counts:
            raise RuntimeError(f"{tool} said nothing: {run.stdout[-2000:]} {run.stderr[-2000:]}")
        found += sum(counts)
        stage.emit({"tool": tool, "findings": sum(counts), "exit_code": run.returncode})
    if found:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
