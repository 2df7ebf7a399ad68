"""The GPU report's stages run one by one, tiny and on a CPU: rows as they come, and a summary at the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has no wheel for this machine")

from benchmarks import gpu_report

ROOT = Path(__file__).parents[2]
STAGES = ["ceilings", "correctness", "headline", "qwen3-8b int8, int8 KV", "timeline bf16"]


def test_the_summary_keeps_steps_with_and_without_graphs_apart() -> None:
    row = {"stage": "engine", "model": "tiny", "format": "bf16", "decode": 4, "tokens_per_s": 9.0, "eager": False}
    summary = gpu_report._headline([row, {**row, "tokens_per_s": 3.0, "eager": True}])
    assert summary == {"tiny bf16 decode 4": 9.0, "tiny bf16 eager decode 4": 3.0}


@pytest.mark.slow
def test_a_trial_runs_its_stages_and_sums_them_up(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "benchmarks.gpu_report", "--trial", "--output", str(output), "--only", *STAGES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["stages"] == dict.fromkeys(STAGES, "ok")
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert summary["rows"] == len(rows)
    assert [row["stage"] for row in rows if "outcome" in row] == STAGES
    correct = [row for row in rows if row.get("stage") == "correctness" and "case" in row]
    assert len(correct) == 12
    assert all(row["ok"] for row in correct)
    assert any(row.get("decode") == 4 and row["replayed"] for row in rows)
