"""Memory that models may take together."""

from __future__ import annotations

import os
from pathlib import Path

from app.serving.memory import RESERVE_BYTES, FixedBudget, MachineBudget, Share, taken_by

GIB = 1 << 30


def machine(root: Path, *, total: int, available: int, limit: str = "max", used: int = 0) -> MachineBudget:
    """A machine of so many GiB, and a container on it."""
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(
        f"MemTotal: {total << 20} kB\nMemFree: 1 kB\nMemAvailable: {available << 20} kB\n"
    )
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/memory.max").write_text(f"{limit}\n")
    (root / "sys/fs/cgroup/memory.current").write_text(f"{used * GIB}\n")
    return MachineBudget(root)


def test_a_figure_is_shared_by_what_was_promised() -> None:
    budget = FixedBudget(8 * GIB)
    assert budget.most() == 8 * GIB
    assert budget.left([]) == 8 * GIB
    assert budget.left([Share(5 * GIB, GIB), Share(4 * GIB, 4 * GIB)]) == -GIB


def test_a_machine_has_what_is_available_and_was_not_promised(tmp_path: Path) -> None:
    budget = machine(tmp_path, total=16, available=10)
    assert budget.most() == 16 * GIB - RESERVE_BYTES
    # Of 3 GiB promised 1 is taken, and so available no more; another took more than it was promised.
    assert budget.left([Share(3 * GIB, GIB), Share(GIB, 2 * GIB)]) == 8 * GIB - RESERVE_BYTES


def test_a_container_has_its_limit(tmp_path: Path) -> None:
    budget = machine(tmp_path, total=16, available=10, limit=str(4 * GIB), used=3)
    assert budget.most() == 4 * GIB - RESERVE_BYTES
    assert budget.left([]) == GIB - RESERVE_BYTES


def test_where_nothing_tells_everything_fits(tmp_path: Path) -> None:
    assert MachineBudget(tmp_path).left([Share(1 << 50, 0)]) > 1 << 60


def test_what_a_process_holds() -> None:
    if Path("/proc/self/statm").exists():
        assert taken_by(os.getpid()) > 1 << 20
    assert taken_by(None) == 0
