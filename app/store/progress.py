"""How pulling a model shows what it is doing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

Advance = Callable[[int], None]
"""Called with the bytes done since the last call."""


class ProgressReporter(Protocol):
    """Shows one piece of work at a time."""

    def task(self, description: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Work of ``total`` bytes, or of unknown size; done when the context is left without an exception."""
        ...


class SilentProgress:
    """Shows nothing."""

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Advance]:
        """See :class:`ProgressReporter`."""
        del description, total
        yield lambda _: None


class RecordedProgress:
    """Notes how far the present piece of work is, for those who ask from another thread."""

    def __init__(self, shown: ProgressReporter | None = None) -> None:
        self._shown = shown or SilentProgress()
        self.description = ""
        """What is being done; empty when nothing is."""
        self.done = 0
        """Bytes done."""
        self.total: int | None = None
        """Bytes in all; None where that is not known."""

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Advance]:
        """See :class:`ProgressReporter`."""
        self.description, self.done, self.total = description, 0, total

        def advance(size: int) -> None:
            self.done += size
            shown(size)

        try:
            with self._shown.task(description, total) as shown:
                yield advance
        finally:
            self.description, self.done, self.total = "", 0, None


class TerminalProgress:
    """Bars on a terminal; one line at the start and one at the end of a task anywhere else."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Advance]:
        """See :class:`ProgressReporter`."""
        show = self._bar if self._console.is_terminal else self._lines
        with show(description, total) as advance:
            yield advance

    @contextmanager
    def _bar(self, description: str, total: int | None) -> Iterator[Advance]:
        columns = [SpinnerColumn(finished_text="✓"), TextColumn("{task.description}", markup=False)]
        if total is not None:
            columns += [BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
        with Progress(*columns, TimeElapsedColumn(), console=self._console) as progress:
            task = progress.add_task(description, total=total)
            yield lambda size: progress.advance(task, size)
            progress.update(task, total=total or 1, completed=total or 1)

    @contextmanager
    def _lines(self, description: str, total: int | None) -> Iterator[Advance]:
        size = "" if total is None else f" ({decimal(total)})"
        self._print(f"{description}{size} …")
        start = time.monotonic()
        yield lambda _: None
        self._print(f"{description}: done in {time.monotonic() - start:.1f} s")

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
