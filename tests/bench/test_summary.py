"""The figures against numpy and against their definitions written out."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bench.client import RequestResult
from app.bench.load import LoadRun
from app.bench.summary import describe, is_good, samples, summarise

SECONDS = st.floats(1e-6, 1e3)


@st.composite
def results(draw: st.DrawFn) -> RequestResult:
    result = RequestResult(index=0, scheduled=None, started=draw(SECONDS), e2el=draw(SECONDS))
    if draw(st.booleans()):
        result.error = draw(st.sampled_from(["http_429", "timeout"]))
        result.message = "sorry"
        return result
    result.ttft = draw(st.none() | SECONDS)
    result.tpot = draw(st.none() | SECONDS)
    result.itl = draw(st.lists(SECONDS, max_size=4))
    counts = [draw(st.integers(0, 1000)) for _ in range(4)]
    result.input_tokens, result.output_tokens, result.cached_tokens, result.output_chunks = counts
    result.has_usage = True
    return result


@given(st.lists(SECONDS, min_size=1))
def test_descriptions_are_numpys(seconds: list[float]) -> None:
    ms = [value * 1000 for value in seconds]
    found = describe(seconds, "itl")
    expected = {"mean": np.mean(ms), "std": np.std(ms), "median": statistics.median(ms), "p50": np.median(ms)}
    expected |= {f"p{q}": np.quantile(ms, q / 100) for q in (90, 99)}
    assert found == {f"{name}_itl_ms": pytest.approx(value, abs=1e-9) for name, value in expected.items()}


@given(st.lists(results(), max_size=12), st.integers(0, 3), st.floats(0.001, 1000))
def test_the_parts_add_up(requests: list[RequestResult], cancelled: int, elapsed: float) -> None:
    run = LoadRun(results=requests, num_started=len(requests) + cancelled, elapsed=elapsed)
    figures = summarise(run, {"e2el": 500.0})
    done = [result for result in requests if result.error is None]
    outputs = sum(result.output_tokens for result in done)
    assert figures["completed"] + figures["failed"] == len(requests)
    assert figures["cancelled"] == cancelled
    assert sum(figures["errors"].values()) == figures["failed"]
    assert figures["request_throughput"] == pytest.approx(len(done) / elapsed)
    assert figures["output_throughput"] == pytest.approx(outputs / elapsed)
    assert figures["total_token_throughput"] == pytest.approx(
        (outputs + sum(result.input_tokens for result in done)) / elapsed
    )
    assert figures["cached_tokens"] == sum(result.cached_tokens for result in done)
    assert figures["good_requests"] == sum(result.e2el * 1000 <= 500 for result in done)
    gaps = [gap * 1000 for result in done for gap in result.itl]
    assert figures["p99_itl_ms"] == (pytest.approx(np.percentile(gaps, 99)) if gaps else None)
    firsts = [result.ttft * 1000 for result in done if result.ttft is not None]
    assert figures["mean_ttft_ms"] == (pytest.approx(np.mean(firsts)) if firsts else None)


def test_failed_requests_are_in_no_latency() -> None:
    ok = RequestResult(index=0, scheduled=None, started=0.0, ttft=0.1, e2el=0.2, output_tokens=5)
    failed = RequestResult(index=1, scheduled=None, started=0.0, e2el=60.0, error="timeout", message="late")
    figures = summarise(LoadRun(results=[ok, failed], num_started=2, elapsed=2.0), {})
    assert figures["p99_e2el_ms"] == pytest.approx(200.0)
    assert figures["errors"] == {"timeout": 1}
    assert figures["error_examples"] == {"timeout": "late"}
    assert figures["request_throughput"] == 0.5


def test_nothing_measured_is_none_not_zero() -> None:
    figures = summarise(LoadRun(), {"ttft": 1.0})
    assert figures["mean_ttft_ms"] is None
    assert figures["p99_itl_ms"] is None
    assert figures["request_throughput"] is None


def test_goodput_needs_every_bound() -> None:
    result = RequestResult(index=0, scheduled=None, started=0.0, ttft=0.1, tpot=0.02, e2el=1.0)
    assert is_good(result, {"ttft": 100.0, "tpot": 20.0, "e2el": 1000.0})
    for measure, bound in (("ttft", 99.0), ("tpot", 19.0), ("e2el", 999.0)):
        assert not is_good(result, {"ttft": 100.0, "tpot": 20.0, "e2el": 1000.0, measure: bound})
    one_token = RequestResult(index=0, scheduled=None, started=0.0, ttft=0.1, e2el=0.1)
    assert is_good(one_token, {"tpot": 1.0})
    no_text = RequestResult(index=0, scheduled=None, started=0.0, e2el=0.1)
    assert not is_good(no_text, {"ttft": 1000.0})


def test_send_lag_tells_a_slow_load_generator() -> None:
    late = [RequestResult(index=i, scheduled=float(i), started=i + lag) for i, lag in enumerate([0.001, 0.25])]
    assert summarise(LoadRun(results=late, num_started=2, elapsed=1.0), {})["max_send_lag_ms"] == pytest.approx(250)
    assert samples(late, "ttft") == []
