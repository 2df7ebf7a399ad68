"""What a run comes to. Latencies are those of requests that succeeded, in milliseconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from app.bench.client import RequestResult
from app.bench.load import LoadRun

MEASURES = ("ttft", "tpot", "itl", "e2el")
PERCENTILES = (50, 90, 99)


def summarise(run: LoadRun, goodput: Mapping[str, float]) -> dict[str, Any]:
    """Figures of a run, ready for a row of JSON.

    Args:
        goodput: measure -> milliseconds; a request within all of them is a good one.

    Returns:
        Counts, throughputs (a second, over the whole run) and, for each of ttft, tpot, itl and e2el,
        ``{mean,median,std,p50,p90,p99}_X_ms``. None stands for what cannot be known, as the percentiles of nothing.
    """
    done = [result for result in run.results if result.error is None]
    failed = [result for result in run.results if result.error is not None]
    inputs = sum(result.input_tokens for result in done)
    outputs = sum(result.output_tokens for result in done)
    figures: dict[str, Any] = {
        "duration": run.elapsed,
        "completed": len(done),
        "failed": len(failed),
        "cancelled": run.num_running,
        "interrupted": run.interrupted,
        "errors": dict(Counter(result.error for result in failed).most_common()),
        "error_examples": {result.error: result.message for result in reversed(failed)},
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "cached_tokens": sum(result.cached_tokens for result in done),
        "output_chunks": sum(result.output_chunks for result in done),
        "without_usage": sum(not result.has_usage for result in done),
        "request_throughput": _rate(len(done), run.elapsed),
        "output_throughput": _rate(outputs, run.elapsed),
        "total_token_throughput": _rate(inputs + outputs, run.elapsed),
        "max_send_lag_ms": _max_lag(run.results),
    }
    if goodput:
        good = sum(is_good(result, goodput) for result in done)
        figures |= {"good_requests": good, "request_goodput": _rate(good, run.elapsed)}
    for measure in MEASURES:
        figures |= describe(samples(done, measure), measure)
    return figures


def samples(done: Sequence[RequestResult], measure: str) -> list[float]:
    """All values of a measure, in seconds: one a request that has it, for ``itl`` one a gap."""
    if measure == "itl":
        return [gap for result in done for gap in result.itl]
    values = [getattr(result, measure) for result in done]
    return [value for value in values if value is not None]


def describe(seconds: Sequence[float], measure: str) -> dict[str, float | None]:
    """``mean_X_ms`` and the others; the deviation is the population's, percentiles are interpolated linearly."""
    names = ["mean", "median", "std", *(f"p{q}" for q in PERCENTILES)]
    values: list[float | None] = [None] * len(names)
    if seconds:
        ms = np.asarray(seconds) * 1e3
        found = [ms.mean(), np.median(ms), ms.std(), *np.percentile(ms, PERCENTILES)]
        values = [float(value) for value in found]
    return {f"{name}_{measure}_ms": value for name, value in zip(names, values, strict=True)}


def is_good(result: RequestResult, goodput: Mapping[str, float]) -> bool:
    """Whether a request met every bound. Without text it meets none on TTFT; a single token meets any on TPOT."""
    measured = {"ttft": result.ttft, "tpot": result.tpot or 0.0, "e2el": result.e2el}
    values = [(measured[measure], bound) for measure, bound in goodput.items()]
    return all(value is not None and value * 1e3 <= bound for value, bound in values)


def _rate(count: float, seconds: float) -> float | None:
    return count / seconds if seconds > 0 else None


def _max_lag(results: Sequence[RequestResult]) -> float | None:
    """How late an open loop was at worst: more than a little, and the load generator was the one overloaded."""
    lags = [result.started - result.scheduled for result in results if result.scheduled is not None]
    return max(lags) * 1e3 if lags else None
