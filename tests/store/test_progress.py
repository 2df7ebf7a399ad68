from __future__ import annotations

import io

import pytest
from rich.console import Console

from app.store import ProgressReporter, SilentProgress, TerminalProgress


def work(progress: ProgressReporter, total: int | None) -> None:
    with progress.task("Copying [x]", total) as advance:
        for _ in range(4):
            advance(500_000)


@pytest.mark.parametrize("total", [None, 2_000_000])
def test_lines_where_there_is_no_terminal(total: int | None) -> None:
    out = io.StringIO()
    work(TerminalProgress(Console(file=out)), total)
    first, last = out.getvalue().splitlines()
    assert first == ("Copying [x] …" if total is None else "Copying [x] (2.0 MB) …")
    assert last.startswith("Copying [x]: done in ")


@pytest.mark.parametrize("total", [None, 2_000_000])
def test_bar_on_a_terminal(total: int | None) -> None:
    out = io.StringIO()
    work(TerminalProgress(Console(file=out, force_terminal=True, width=100)), total)
    assert "Copying [x]" in out.getvalue()
    assert ("2.0/2.0 MB" in out.getvalue()) == (total is not None)
    assert ("B/s" in out.getvalue()) == (total is not None)


def test_failed_task_is_not_reported_as_done() -> None:
    out = io.StringIO()

    def fail() -> None:
        with TerminalProgress(Console(file=out)).task("Copying"):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert "done" not in out.getvalue()


def test_silence(capfd: pytest.CaptureFixture[str]) -> None:
    work(SilentProgress(), 2_000_000)
    assert capfd.readouterr() == ("", "")
