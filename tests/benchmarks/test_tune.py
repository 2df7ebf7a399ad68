"""The tuner: what it tries is possible, and what it writes is a table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch

pytest.importorskip("triton", reason="Triton has no wheel for this machine")

from app.kernels.gpu.tuning import Row, Table, launch_shape, read_table, trying
from benchmarks.gpu.models import MODELS
from benchmarks.gpu.tune import dumps, tasks

ROOT = Path(__file__).parents[2]


def test_every_task_has_candidates_of_the_shape_in_use() -> None:
    """Names alike, so that a kernel takes them; and the wider class comes after the narrower one."""
    defaults = read_table("default")
    seen = dict[str, list[dict[str, int]]]()
    for task in tasks(MODELS["llama-3.1-8b"], torch.device("meta")):
        names = {frozenset(row.shape) for row in defaults[task.op]}
        assert task.candidates
        assert {frozenset(shape) for shape in task.candidates} <= names, task.op
        assert task.problems
        for where in seen.setdefault(task.op, []):
            assert not where.items() <= task.where.items(), "a row that no problem would reach"
        seen[task.op].append(task.where)
    assert seen.keys() >= {"gemm_w8a8", "gemm_w8a16", "gemv", "paged_attention_decode", "paged_attention_prefill"}


def test_a_shape_on_trial_goes_before_the_tables() -> None:
    before = launch_shape("quantize", width=100)
    with trying("quantize", {"num_warps": 1, "num_stages": 1}):
        assert launch_shape("quantize", width=100) == {"num_warps": 1, "num_stages": 1}
        assert launch_shape("add_norm", width=100)["num_warps"] > 1
    assert launch_shape("quantize", width=100) == before


def test_a_table_is_written_as_it_is_read() -> None:
    table: Table = {"gemv": [Row({"BLOCK_N": 4, "num_warps": 4}, {"k": 64}), Row({"BLOCK_N": 2, "num_warps": 8})]}
    text = dumps(table)
    assert msgspec.json.decode(text, type=Table) == table
    assert all(line.count("{") <= 3 for line in text.splitlines())


@pytest.mark.slow
def test_a_trial_times_candidates_and_chooses(tmp_path: Path) -> None:
    output, table = tmp_path / "rows.jsonl", tmp_path / "table.json"
    command = [sys.executable, "-m", "benchmarks.gpu.tune", "--device", "cpu", "--model", "tiny", "--candidates", "2"]
    command += ["--ops", "gemv", "paged_attention_decode", "--output", str(output), "--table", str(table)]
    done = subprocess.run(
        command, cwd=ROOT, env={"PATH": "", "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    tried = [row for row in rows if "us" in row]
    assert {row["op"] for row in tried} == {"gemv", "paged_attention_decode"}
    assert all(row["wrong"] == [] for row in tried)
    chosen = [(row["op"], row["where"], row["chosen"]) for row in rows if "chosen" in row]
    written = msgspec.json.decode(table.read_bytes(), type=Table)
    assert [(op, row.where, row.shape) for op, found in written.items() for row in found] == chosen
    assert len(chosen) == 3
