"""Raw rows to a table: medians over the rounds, and how ours compares with each."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]
_NOISY = 0.05
"""Share of the machine that others may use; a run beside more of them is not quiet."""


@dataclass(frozen=True)
class Metric:
    """One figure of the table: a column."""

    key: str
    workload: str
    field: str
    title: str
    digits: int
    higher_is_better: bool

    def ratio(self, ours: float, theirs: float) -> float:
        """How many times better ours is; below 1 it is worse."""
        return ours / theirs if self.higher_is_better else theirs / ours


METRICS: Sequence[Metric] = (
    Metric("w1_decode_tok_s", "W1", "decode_tok_s", "W1 tok/s", 1, True),
    Metric("w1_ttft_ms", "W1", "ttft_ms", "W1 TTFT, ms", 1, False),
    Metric("w2_output_tok_s", "W2", "output_tok_s", "W2 tok/s", 0, True),
    Metric("w3_prompt_tok_s", "W3", "prompt_tok_s", "W3 tok/s", 0, True),
    Metric("w4_wall_s", "W4", "wall_s", "W4 wall, s", 2, False),
    Metric("first_answer_s", "start", "first_answer_s", "start to 1st answer, s", 1, False),
    Metric("peak_rss_mb", "start", "peak_rss_mb", "peak RSS, MB", 0, False),
)

Medians = dict[str, dict[str, float]]
"""Name -> metric's key -> median over the rounds."""


def medians(rows: Iterable[Row]) -> Medians:
    """What each system comes to, in the order of the rows."""
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        found = values.setdefault(row["name"], {})
        for metric in METRICS:
            if row["workload"] == metric.workload and metric.field in row:
                found.setdefault(metric.key, []).append(row[metric.field])
    return {name: {key: statistics.median(v) for key, v in found.items()} for name, found in values.items()}


def ratios(found: Medians, ours: str) -> Medians:
    """For each other system, how many times better ``ours`` is; only what both were measured in."""
    mine = found.get(ours, {})
    return {
        name: {m.key: m.ratio(mine[m.key], theirs[m.key]) for m in METRICS if m.key in mine and m.key in theirs}
        for name, theirs in found.items()
        if name != ours
    }


def best(found: Medians, names: Iterable[str]) -> dict[str, str]:
    """Metric's key -> which of ``names`` does best."""
    names = [name for name in names if name in found]
    result = {}
    for metric in METRICS:
        measured = [name for name in names if metric.key in found[name]]
        if measured:
            choose = max if metric.higher_is_better else min
            result[metric.key] = choose(measured, key=lambda name, key=metric.key: found[name][key])  # type: ignore[misc]
    return result


def notes(rows: Iterable[Row]) -> list[str]:
    """Whatever makes figures worth less than they seem, each once."""
    found: dict[str, None] = {}
    noisy: dict[str, float] = {}
    for row in rows:
        for note in row.get("notes", ()):
            found[f"{row['name']}, {row['workload']}: {note}"] = None
        if row["workload"] != "W4" and row.get("cached_tokens"):
            found[f"{row['name']}, {row['workload']}: {row['cached_tokens']} prompt tokens came out of a cache"] = None
        if (load := row.get("foreign_load", 0.0)) > _NOISY:
            noisy[row["name"]] = max(load, noisy.get(row["name"], 0.0))
    if noisy:
        worst = max(noisy.values())
        found[f"other programs used up to {worst:.0%} of the machine: these figures are noisy ({', '.join(noisy)})"] = (
            None
        )
    return list(found)


def print_table(console: Console, found: Medians, ours: str) -> None:
    """A row a system; in parentheses how many times better ours is."""
    table = Table(title=f"Medians; (×) is how many times better {ours} is", title_justify="left")
    table.add_column("system", no_wrap=True)
    for metric in METRICS:
        table.add_column(metric.title, justify="right")
    compared = ratios(found, ours)
    for name, figures in found.items():
        table.add_row(Text(name), *(_cell(metric, figures, compared.get(name, {})) for metric in METRICS))
    console.print(table)


def _cell(metric: Metric, figures: Mapping[str, float], compared: Mapping[str, float]) -> str:
    if metric.key not in figures:
        return "–"
    shown = f"{figures[metric.key]:,.{metric.digits}f}"
    return f"{shown} ({compared[metric.key]:.2f}×)" if metric.key in compared else shown
