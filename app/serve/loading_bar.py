"""How far a model's loading is, with its rate and the time that is left: a bar on a terminal, a line elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from app.contract.frames import LoadProgress

_IN_BYTES = ("weights", "kv_cache")
"""Phases whose units are bytes."""


class LoadingBar:
    """One phase at a time; nothing is left of a bar when its phase ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None

    def show(self, progress: LoadProgress) -> None:
        """Moves the bar, drawing it first where there is none."""
        if self._progress is None:
            in_bytes = progress.phase in _IN_BYTES
            units: list[ProgressColumn] = (
                [DownloadColumn(), TransferSpeedColumn()] if in_bytes else [MofNCompleteColumn()]
            )
            columns = [TextColumn("  {task.description:<12}"), BarColumn(), *units, TimeRemainingColumn()]
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.add_task(progress.phase, total=progress.total)
            self._progress.start()
        self._progress.update(self._progress.task_ids[0], completed=progress.done, total=progress.total)

    def end(self) -> None:
        """Takes the bar away, if there is one."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def progress_line(progress: LoadProgress) -> str:
    """The same in words."""
    line = f"{progress.phase:<12}{100 * progress.done // progress.total:7} %"
    if progress.done <= 0 or progress.seconds <= 0:
        return line
    rate = progress.done / progress.seconds
    shown = f", {decimal(int(rate))}/s" if progress.phase in _IN_BYTES else ""
    return f"{line}{shown}, {(progress.total - progress.done) / rate:.0f} s left"
