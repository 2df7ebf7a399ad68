"""Submitting a step never waits for a GPU: no call that would, and on a GPU torch's own word for it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import app
from app.runner.start import make_runner
from tests.models.tiny import make_reference, save
from tests.runner.driver import Request, discard, engine_config, run
from tests.runner.steps import step_of

WAITING = {"item", "cpu", "nonzero", "synchronize"}
"""Methods that copy from a device to Python, or wait for it."""
ROOMS = ("layers", "models", "runner")
ALLOWED = {
    ("runner/staging.py", "upload"),  # for the copy two steps ago
    ("runner/staging.py", "arrays"),  # what collect() calls
    ("runner/snapshot.py", "_copies"),  # on nobody's way
}


def calls() -> Iterator[tuple[str, str, str]]:
    """(file, function, method) of every method call under the rooms that a step passes through."""
    root = Path(app.__path__[0])
    for path in (path for room in ROOMS for path in (root / room).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    yield str(path.relative_to(root)), function.name, node.func.attr


def test_nothing_on_the_way_of_a_step_waits_for_the_device() -> None:
    waiting = {(file, function) for file, function, method in calls() if method in WAITING}
    assert waiting == ALLOWED


@pytest.mark.gpu
def test_torch_knows_of_no_wait_in_a_submitted_step(tmp_path: Path) -> None:
    runner = make_runner(engine_config(save(make_reference("qwen3"), tmp_path), device="cuda", dtype="auto"), discard)
    sequences = [Request(slot, [slot + 1] * 3, [slot]) for slot in range(3)]
    run(runner, sequences, 4)  # compiles and records
    torch.cuda.set_sync_debug_mode("error")
    try:
        handle = runner.submit(step_of([sequence.next_row(1, from_device=True) for sequence in sequences]))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert handle.replayed
    assert len(runner.collect(handle).rows) == 3
