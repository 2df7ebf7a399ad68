"""What a person sees of a run, on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from app.bench.load import LoadRun
from app.bench.summary import MEASURES

_COLUMNS = ("mean", "median", "std", "p50", "p90", "p99")
_NAMES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2E latency"}

_LAG_WORTH_A_NOTE = 50.0
"""Lag of an open loop, in milliseconds, from which the report mentions it."""


@contextmanager
def live_progress(console: Console, total: int | None, duration: float | None) -> Iterator[Callable[[LoadRun], None]]:
    """A bar over the requests, or over the time where only that is bounded; nothing unless on a terminal."""
    columns = [TextColumn("{task.description}"), BarColumn()]
    count = [MofNCompleteColumn()] if total is not None else [TaskProgressColumn()]
    with Progress(*columns, *count, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=total if total is not None else duration)

        def show(run: LoadRun) -> None:
            rate = run.num_output_tokens / run.elapsed if run.elapsed else 0.0
            progress.update(
                task,
                completed=len(run.results) if total is not None else run.elapsed,
                description=f"{run.num_running} running, {rate:,.0f} tok/s",
            )

        yield show


def print_report(console: Console, row: Mapping[str, Any]) -> None:
    """The figures of a run as tables, and whatever makes them worth less than they seem."""
    console.print(_counts(row), _latencies(row))
    for note in _notes(row):
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)


def _counts(row: Mapping[str, Any]) -> Table:
    table = Table.grid(padding=(0, 3))
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    lines: list[tuple[str, Any, str]] = [
        ("Requests", row["completed"], f"{row['failed']} failed, {row['cancelled']} cut off"),
        ("Duration", row["duration"], "s"),
        ("Input tokens", row["total_input_tokens"], f"{row['cached_tokens']:,} of them cached"),
        ("Output tokens", row["total_output_tokens"], f"in {row['output_chunks']:,} chunks"),
        ("Requests/s", row["request_throughput"], ""),
        ("Output tokens/s", row["output_throughput"], ""),
        ("All tokens/s", row["total_token_throughput"], ""),
    ]
    if row["goodput"]:
        bounds = ", ".join(f"{_NAMES[measure]} ≤ {bound:g} ms" for measure, bound in row["goodput"].items())
        lines.append(("Good requests/s", row["request_goodput"], f"{row['good_requests']} requests: {bounds}"))
    for name, value, remark in lines:
        table.add_row(name, _number(value), Text(remark, style="dim"))
    return table


def _latencies(row: Mapping[str, Any]) -> Table:
    table = Table(title="Latency, ms", title_justify="left")
    table.add_column()
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    for measure in MEASURES:
        table.add_row(_NAMES[measure], *(_number(row[f"{column}_{measure}_ms"]) for column in _COLUMNS))
    return table


def _notes(row: Mapping[str, Any]) -> Iterator[str]:
    for kind, count in row["errors"].items():
        yield f"{count} × {kind}: {row['error_examples'][kind]}"
    if row["interrupted"]:
        yield "interrupted: this is what had been measured by then"
    if (row["max_send_lag_ms"] or 0.0) > _LAG_WORTH_A_NOTE:
        yield f"requests went out up to {row['max_send_lag_ms']:.0f} ms late: this machine could not keep up"
    if row["cached_tokens"]:
        share = row["cached_tokens"] / max(1, row["total_input_tokens"])
        yield f"{share:.0%} of the input tokens came out of the server's prefix cache"
    if row["without_usage"]:
        yield f"{row['without_usage']} answers came without usage: their chunks were counted as tokens"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
