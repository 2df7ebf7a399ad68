"""One run over a file of requests: what is left of it is sent, so many at once, and every outcome written."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from app.batch import requests
from app.batch.errors import BatchError
from app.batch.requests import BadRow, RequestRow, digest
from app.batch.results import Results
from app.batch.sender import Sender
from app.client.target import api_root

DONE, FAILED, INTERRUPTED = 0, 1, 130
"""Exit codes: every row has an answer; some have none, or an error for one; a signal ended the run before that."""
DEFAULT_CONCURRENCY = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is to be run, and how."""

    requests: Path
    output: Path | None = None
    """File of results; None: beside the requests, by their name."""
    concurrency: int = DEFAULT_CONCURRENCY
    """Requests under way at once."""
    timeout: float = 600.0
    """Seconds that each try may take."""
    retries: int = 8
    """Tries after the first, where the server says that it has no room, or breaks the connection."""


class Batch:
    """A file of requests and the file of its results, checked, and held until the end of the ``with`` block.

    Raises:
        BatchError: one of the files cannot be used.
    """

    def __init__(self, options: Options) -> None:
        output = options.output or options.requests.with_suffix(".results.jsonl")
        if output.resolve() == options.requests.resolve():
            raise BatchError(f"{output} has the requests: name another file for the results")
        ids = requests.scan(options.requests)
        self.total = len(ids)
        self.options = options
        self.results = Results(output, ids)
        self.num_before = len(self.results.done)
        """Rows that an earlier run has done."""

    @property
    def is_done(self) -> bool:
        """Whether every request has its outcome."""
        return len(self.results.done) == self.total

    def left(self) -> Iterator[RequestRow | BadRow]:
        """The requests without an outcome."""
        done = self.results.done
        return (row for row in requests.read(self.options.requests) if digest(row.custom_id) not in done)

    def summary(self) -> str:
        """What has become of it so far, in one line."""
        done, failed = len(self.results.done), self.results.num_failed
        before = f", {self.num_before} of them before" if self.num_before else ""
        left = "" if self.is_done else f"; {self.total - done} are left for the next run"
        return f"{done} of {self.total} rows done{before}, {failed} failed{left}: {self.results.path}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.results.close()


def run(options: Options, url: str, api_key: str | None) -> int:
    """Runs a batch against a server. Everything for people goes to stderr.

    Returns:
        The exit code.
    """
    console = Console(stderr=True)
    try:
        with Batch(options) as batch:
            code = DONE if batch.is_done else asyncio.run(_against(batch, url, api_key, console))
            return conclude(batch, code, console)
    except BatchError as e:
        tell(console, f"tuili: error: {e}")
        return FAILED
    except KeyboardInterrupt:  # before the first row
        return INTERRUPTED


async def _against(batch: Batch, url: str, api_key: str | None, console: Console) -> int:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    root = api_root(url).removesuffix("/v1")
    async with httpx.AsyncClient(limits=limits, timeout=None) as http:  # noqa: S113 - each try has a bound of its own
        return await answer(batch, http, root, console, api_key=api_key)


async def answer(
    batch: Batch,
    http: httpx.AsyncClient,
    root: str,
    console: Console,
    *,
    api_key: str | None = None,
    stop: asyncio.Event | None = None,
) -> int:
    """Sends what is left of a batch and writes the outcomes as they come.

    The first SIGINT or SIGTERM lets what is under way come to its end, the second ends it.

    Args:
        http: how the server is reached.
        root: its address, without ``/v1``.
        stop: set from elsewhere, no further request begins.

    Returns:
        The exit code.

    Raises:
        BatchError: the server cannot be reached, or the results not be written. What came by then is written.
    """
    stop = stop or asyncio.Event()
    options = batch.options
    sender = Sender(http, root, api_key=api_key, timeout=options.timeout, retries=options.retries, stop=stop)
    left = batch.left()
    with _signals(stop) as interrupted, _progress(console, batch) as show:

        async def work() -> None:
            while not stop.is_set() and (row := next(left, None)) is not None:
                outcome = await sender.send(row)
                if outcome is not None:
                    batch.results.write(outcome)
                    show()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(options.concurrency, batch.total)):
                    group.create_task(work())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        except asyncio.CancelledError:
            if not interrupted.is_set():
                raise
    if interrupted.is_set() and not batch.is_done:
        return INTERRUPTED
    return FAILED if batch.results.num_failed else DONE


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Iterator[asyncio.Event]:
    """Has the first SIGINT or SIGTERM set ``stop``, and the second cancel the present task.

    Yields:
        An event that the first one sets too.
    """
    loop, task, interrupted = asyncio.get_running_loop(), asyncio.current_task(), asyncio.Event()

    def on_signal() -> None:
        if interrupted.is_set() and task is not None:
            task.cancel()
        interrupted.set()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        yield interrupted
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _progress(console: Console, batch: Batch) -> Iterator[Callable[[], None]]:
    """A bar over the rows; nothing unless on a terminal. Yields what is called when one more is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("rows", total=batch.total, completed=batch.num_before)

        def show() -> None:
            failed = batch.results.num_failed
            progress.update(task, advance=1, description=f"rows, {failed} failed" if failed else "rows")

        yield show


class _Rate(ProgressColumn):
    """Rows a second."""

    def render(self, task: Task) -> Text:
        """See :class:`ProgressColumn`."""
        return Text("" if task.speed is None else f"{task.speed:.2f}/s")


def conclude(batch: Batch, code: int, console: Console) -> int:
    """Says what has become of a batch.

    Args:
        code: exit code of the run; of one that had nothing to do :data:`DONE`.

    Returns:
        The exit code.
    """
    tell(console, batch.summary())
    return FAILED if code == DONE and batch.results.num_failed else code


def tell(console: Console, line: str) -> None:
    """Writes a line for people, as it stands."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
