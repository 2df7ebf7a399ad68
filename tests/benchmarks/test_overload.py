"""What the overload benchmark promises of a server, and what it finds broken."""

from __future__ import annotations

from app.bench.client import RequestResult
from benchmarks.overload import Bounds, Capacity, Obedience, bounds_for, check, check_counts
from benchmarks.served import parse_totals

BOUNDS = Bounds(ttft=1.0, e2el=2.0)


def _accepted(*, ttft: float = 0.5, e2el: float = 1.5) -> RequestResult:
    return RequestResult(index=0, scheduled=0.0, started=0.0, ttft=ttft, e2el=e2el)


def _refused(*, e2el: float = 0.01, retry_after: float | None = 1.0) -> RequestResult:
    return RequestResult(
        index=1, scheduled=0.0, started=0.0, e2el=e2el, error="http_429", message="full", retry_after=retry_after
    )


def test_bounds_are_the_queue_over_the_capacity() -> None:
    bounds = bounds_for(Capacity(request_rate=4.0, ttft_p99=0.25), max_num_seqs=8, max_queue=16)
    assert bounds == Bounds(ttft=1.5 * 4.0 + 0.25, e2el=1.5 * 6.0)


def test_a_kept_promise_is_no_fault() -> None:
    assert check([_accepted()], [_refused()], [], [Obedience(attempts=2, served=True)], BOUNDS) == []


def test_each_broken_promise_is_named() -> None:
    def faults(
        accepted: RequestResult | None = None, refused: RequestResult | None = None, *, served: bool = True
    ) -> str:
        found = check([accepted or _accepted()], [refused or _refused()], [], [Obedience(served=served)], BOUNDS)
        assert len(found) == 1
        return found[0]

    assert "ttft" in faults(_accepted(ttft=1.1))
    assert "e2el" in faults(_accepted(e2el=2.1))
    assert "p99 of refusals" in faults(refused=_refused(e2el=0.051))
    assert "Retry-After" in faults(refused=_refused(retry_after=None))
    assert "Retry-After" in faults(refused=_refused(retry_after=0.0))
    assert "obeyed" in faults(served=False)
    assert "no overload" in check([_accepted()], [], [], [], BOUNDS)[0]
    other = RequestResult(index=2, scheduled=0.0, started=0.0, error="disconnected")
    assert "disconnected" in check([_accepted()], [_refused()], [other], [], BOUNDS)[0]


def test_metrics_must_know_of_every_answer() -> None:
    page = (
        "# TYPE tuili_requests_refused counter\n"
        'tuili_requests_refused_total{endpoint="a",reason="overloaded"} 2\n'
        'tuili_requests_refused_total{endpoint="b",reason="overloaded"} 1\n'
        "# TYPE vllm:request_success counter\n"
        'vllm:request_success_total{finished_reason="length"} 1\n'
        'vllm:request_success_total{finished_reason="stop"} 1\n'
    )
    counted = parse_totals(page)
    results = [_accepted(), _refused(), _refused()]
    assert check_counts(results, [Obedience(attempts=2, served=True)], counted) == []
    assert check_counts(results, [Obedience(attempts=1, served=True)], counted)
