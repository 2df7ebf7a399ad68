"""A picture of a run: how each latency is distributed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from app.bench.client import RequestResult
from app.bench.summary import MEASURES, PERCENTILES, samples

_TITLES = {
    "ttft": "Time to first token",
    "tpot": "Time per output token",
    "itl": "Inter-token latency",
    "e2el": "End-to-end latency",
}


def save_plot(results: Sequence[RequestResult], title: str, path: Path) -> None:
    """Writes the distributions of all requests that succeeded to an image file, of the format that its suffix says.

    Raises:
        OSError: the file cannot be written.
        ValueError: the suffix is of no known format.
    """
    figure = Figure(figsize=(11, 7), layout="constrained")
    figure.suptitle(title)
    done = [result for result in results if result.error is None]
    for axes, measure in zip(figure.subplots(2, 2).flat, MEASURES, strict=True):
        _distribution(axes, samples(done, measure))
        axes.set_title(_TITLES[measure])
    figure.savefig(path, dpi=120)


def _distribution(axes: Axes, seconds: Sequence[float]) -> None:
    axes.set(xlabel="ms", ylabel="share at most this long", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    if not seconds:
        axes.text(0.5, 0.5, "nothing measured", ha="center", transform=axes.transAxes)
        return
    ms = np.sort(np.asarray(seconds)) * 1e3
    axes.step(ms, np.arange(1, len(ms) + 1) / len(ms), where="post")
    for q, value in zip(PERCENTILES, np.percentile(ms, PERCENTILES), strict=True):
        axes.axvline(value, color="grey", linestyle=":", linewidth=1)
        axes.text(value, 0.02, f" p{q} {value:.1f}", rotation=90, va="bottom", fontsize=8)
