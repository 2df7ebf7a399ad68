"""Draws the dashboard from a real Prometheus: the same queries, grid, titles, units and legends, without Grafana.

``make dashboard-picture`` runs it and writes ``deploy/grafana/dashboard.png``. A server is put under load and scraped
as in :mod:`deploy.dashboard_check`; every panel's queries are then asked over that time. It is a drawing of what
the dashboard shows, not a screenshot of Grafana. It needs ``prometheus`` on the path and matplotlib.
"""
# ruff: noqa: T201 - a program that tells what it does

from __future__ import annotations

import json
import math
import re
import shutil
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter, MaxNLocator
from PIL import Image

from deploy.dashboard_check import DEPLOY, LOAD_SECONDS, VARIABLES, _free_ports, _load, _scraping, _serving

PICTURE = DEPLOY / "grafana/dashboard.png"
COLUMNS = 24  # of Grafana's grid
CELL_INCHES = (0.55, 0.27)
STEP_SECONDS = 1.0
GAP = 0.15  # between panels, in cells
COLOURS = ("#73bf69", "#f2cc0c", "#5794f2", "#ff780a", "#f2495c", "#b877d9")
DARK: Any = {  # rcParams; their names are a type of their own
    "figure.facecolor": "#111217",
    "axes.facecolor": "#181b1f",
    "axes.edgecolor": "#2c3235",
    "axes.labelcolor": "#ccccdc",
    "grid.color": "#2c3235",
    "text.color": "#ccccdc",
    "xtick.color": "#9a9ba5",
    "ytick.color": "#9a9ba5",
    "font.size": 7,
}

Series = tuple[str, list[float], list[float]]
"""A legend, seconds since the load began, values."""


def main() -> int:
    """Returns the exit code: 0 when the picture is written, 2 when this machine cannot make it."""
    if not shutil.which("prometheus"):
        print("dashboard-picture needs prometheus on the path (Debian package prometheus)", file=sys.stderr)
        return 2
    panels: list[dict[str, Any]] = json.loads((DEPLOY / "grafana/dashboards/tuili.json").read_text())["panels"]
    server, prometheus = (f"127.0.0.1:{port}" for port in _free_ports(2))
    with tempfile.TemporaryDirectory() as directory, _serving(server), _scraping(Path(directory), server, prometheus):
        print(f"dashboard-picture: load for {LOAD_SECONDS:.0f} s", flush=True)
        start = time.time()
        _load(server)
        end = time.time()
        series = [_panel_series(prometheus, panel, start, end) for panel in panels]
    _draw(panels, series)
    print(f"dashboard-picture: {PICTURE.relative_to(DEPLOY.parent)}, {PICTURE.stat().st_size / 1e3:.0f} kB")
    return 0


def _panel_series(prometheus: str, panel: dict[str, Any], start: float, end: float) -> list[Series]:
    return [
        series
        for target in panel.get("targets", [])
        for series in _range(prometheus, target["expr"], target.get("legendFormat", ""), start, end)
    ]


def _range(prometheus: str, query: str, legend: str, start: float, end: float) -> list[Series]:
    """A range query's series; what is not a number is left out."""
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)
    parameters = urllib.parse.urlencode({"query": query, "start": start, "end": end, "step": STEP_SECONDS})
    with urllib.request.urlopen(f"http://{prometheus}/api/v1/query_range?{parameters}", timeout=10) as answer:
        results = json.load(answer)["data"]["result"]
    found = []
    for result in results:
        points = [(float(at) - start, float(value)) for at, value in result["values"]]
        finite = [(at, value) for at, value in points if math.isfinite(value)]
        labels: dict[str, str] = result["metric"]
        found.append((_legend(legend, labels), [at for at, _ in finite], [value for _, value in finite]))
    return found


def _legend(template: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda name: labels.get(name[1], ""), template)


def _draw(panels: list[dict[str, Any]], series: list[list[Series]]) -> None:
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    with mpl.rc_context(DARK):
        figure = plt.figure(figsize=(COLUMNS * CELL_INCHES[0], rows * CELL_INCHES[1]))
        for panel, lines in zip(panels, series, strict=True):
            _draw_panel(figure, panel, lines, rows)
        figure.savefig(PICTURE, dpi=85)
        plt.close(figure)
    _reduce_colours(PICTURE)


def _draw_panel(figure: Figure, panel: dict[str, Any], lines: list[Series], rows: int) -> None:
    at = panel["gridPos"]
    x, y, w, h = (at["x"] + GAP, rows - at["y"] - at["h"] + GAP, at["w"] - 2 * GAP, at["h"] - 2 * GAP)
    if panel["type"] == "row":
        figure.text(x / COLUMNS, (y + h / 2) / rows, "▾ " + panel["title"], va="center", fontsize=9, weight="bold")
        return
    box = figure.add_axes((x / COLUMNS, y / rows, w / COLUMNS, h / rows))
    box.set(xticks=[], yticks=[])
    box.text(0.02, 1 - 0.35 / h, panel["title"], transform=box.transAxes, va="top", fontsize=7.5, weight="medium")
    if panel["type"] == "stat":
        _draw_stat(box, panel, lines)
    else:
        left, bottom, top = 1.05, 1.75, 1.3  # cells kept for the axis, the legend and the title
        right = 0.9 if panel["fieldConfig"].get("overrides") else 0.25
        inner = ((x + left) / COLUMNS, (y + bottom) / rows, (w - left - right) / COLUMNS, (h - bottom - top) / rows)
        _draw_lines(figure.add_axes(inner), panel, lines)


def _draw_stat(box: Axes, panel: dict[str, Any], lines: list[Series]) -> None:
    values = lines[0][2] if lines else []
    text = (
        _formatter(panel["fieldConfig"]["defaults"].get("unit", "none"))(round(values[-1], 4), None)
        if values
        else "no data"
    )
    box.text(0.5, 0.4, text, transform=box.transAxes, ha="center", va="center", fontsize=17, color=COLOURS[0])


def _draw_lines(axes: Axes, panel: dict[str, Any], lines: list[Series]) -> None:
    """Lines, stacked where the dashboard stacks; those with a unit of their own get an axis on the right."""
    defaults = panel["fieldConfig"]["defaults"]
    right: Axes | None = None
    stacked = "stacking" in defaults.get("custom", {})
    below: dict[float, float] = {}
    for number, (legend, seconds, values) in enumerate(lines):
        unit = _unit_of(panel, legend)
        if unit is not None and right is None:
            right = axes.twinx()
            right.yaxis.set_major_formatter(_formatter(unit))
        if stacked:
            values = [value + below.get(at, 0.0) for at, value in zip(seconds, values, strict=True)]
            below |= dict(zip(seconds, values, strict=True))
        target = axes if unit is None or right is None else right
        target.plot(seconds, values, linewidth=1, label=legend, color=COLOURS[number % len(COLOURS)])
    axes.yaxis.set_major_formatter(_formatter(defaults.get("unit", "none")))
    for part in (axes,) if right is None else (axes, right):
        part.set_ylim(defaults.get("min"), defaults.get("max"))
        part.yaxis.set_major_locator(MaxNLocator(4))
        part.tick_params(length=0, labelsize=6)
        part.spines[:].set_visible(False)
    axes.set_xlim(0, LOAD_SECONDS)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(linewidth=0.5)
    handles = [*axes.get_lines(), *(right.get_lines() if right else [])]
    axes.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.45, -0.1), ncols=4, frameon=False, fontsize=6,
        columnspacing=1, handlelength=1,
    )  # fmt: skip


def _unit_of(panel: dict[str, Any], legend: str) -> str | None:
    """The unit that an override gives to a series, or none."""
    for override in panel["fieldConfig"].get("overrides", []):
        matcher = override["matcher"]
        by_name = matcher["id"] == "byName" and matcher["options"] == legend
        if by_name or (matcher["id"] == "byRegexp" and re.fullmatch(matcher["options"], legend)):
            return next((str(entry["value"]) for entry in override["properties"] if entry["id"] == "unit"), None)
    return None


def _formatter(unit: str) -> Formatter:
    """Grafana's units, as far as this dashboard uses them."""
    if unit == "percentunit":
        return FuncFormatter(lambda value, _: f"{100 * value:.3g} %")
    if unit == "reqps":
        return FuncFormatter(lambda value, _: f"{value:.3g} req/s")
    if unit == "none":
        return FuncFormatter(lambda value, _: f"{value:.3g}")
    symbol = {"s": "s", "bytes": "B"}[unit]
    return EngFormatter(unit=symbol, places=None if unit == "s" else 0)


def _reduce_colours(path: Path) -> None:
    """A palette of 64 colours keeps the file small."""
    with Image.open(path) as picture:
        reduced = picture.convert("RGB").quantize(64)
    reduced.save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
