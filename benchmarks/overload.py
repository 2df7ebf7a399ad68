"""Twice the load that a server can take, for a minute: does it keep its word? The last line is JSON.

python -m benchmarks.overload

First a closed loop measures the capacity. From it and the queue's bound follow the latencies that accepted requests
must keep; they are printed before the overload begins. Then requests arrive at twice the capacity (Poisson), whether
or not earlier ones are answered. What is not accepted must be answered 429 with Retry-After at once, as its client
sees it. A few more clients do as Retry-After says, and must be served in the end. Exit code 1 if any of that fails.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import itertools
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx

from app.bench.arrivals import arrival_times
from app.bench.client import Client, RequestResult
from app.bench.load import Load
from app.bench.options import Options
from app.bench.prompts import SyntheticPrompts
from app.bench.summary import describe
from benchmarks.rows import RESULTS, context, report
from benchmarks.served import ServerError, Totals, served, totals_at_rest

REFUSAL_BOUND = 0.050
"""Most seconds until a refused request has its whole 429, p99."""
SLACK = 1.5
"""Arrivals and ends are not even: the slowest of a hundred may take this much longer than the queue's mean."""
_ATTEMPTS = 20
_MAX_THOUGHT = 4.0
"""Most seconds that an obedient client lets pass between its requests."""


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What a closed loop gets out of the server."""

    request_rate: float
    """Requests a second."""
    ttft_p99: float
    """Time to first token with nobody waiting, p99, in seconds."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Seconds that accepted requests stay within, p99."""

    ttft: float
    e2el: float


@dataclass(slots=True)
class Obedience:
    """A request whose client waits as long as it is told to, and asks again."""

    attempts: int = 0
    waited: float = 0.0
    """Seconds spent on waiting."""
    served: bool = False


def bounds_for(capacity: Capacity, *, max_num_seqs: int, max_queue: int) -> Bounds:
    """The latencies that a full queue means: it empties at the rate of the capacity, and so does the batch."""
    return Bounds(
        ttft=SLACK * max_queue / capacity.request_rate + capacity.ttft_p99,
        e2el=SLACK * (max_queue + max_num_seqs) / capacity.request_rate,
    )


def percentile_ms(seconds: Sequence[float], measure: str, q: int = 99) -> float:
    """A percentile in milliseconds; 0 of nothing."""
    return describe(seconds, measure)[f"p{q}_{measure}_ms"] or 0.0


async def measure_capacity(client: Client, prompts: SyntheticPrompts, *, concurrency: int, duration: float) -> Capacity:
    """Keeps the batch full, no more. Raises :class:`ServerError` when a request fails."""
    run = await Load(client.send, prompts.generate("capacity"), duration=duration).closed(concurrency)
    if failed := [result for result in run.results if result.error is not None]:
        raise ServerError(f"a request of the closed loop failed ({failed[0].error}): {failed[0].message}")
    return Capacity(
        # All begin together and take alike, so the batch is full from the first moment to nearly the last.
        request_rate=len(run.results) / run.elapsed,
        ttft_p99=percentile_ms([result.ttft for result in run.results if result.ttft is not None], "ttft") / 1e3,
    )


async def obey(client: Client, prompts: SyntheticPrompts, number: int, end: float) -> list[Obedience]:
    """One client, one request after the other until ``end``, waiting for as long as it is told to."""
    done: list[Obedience] = []
    rng = random.Random(number)
    for index, prompt in enumerate(prompts.generate(f"obedient/{number}")):
        # Asking again at once, it would find the room that its own answer has just left.
        await asyncio.sleep(rng.uniform(0.0, _MAX_THOUGHT))
        if time.perf_counter() >= end:
            return done
        request = Obedience()
        done.append(request)
        while not request.served and request.attempts < _ATTEMPTS:
            request.attempts += 1
            result = await client.send(index, prompt, time.perf_counter(), None)
            request.served = result.error is None
            if not request.served:
                pause = result.retry_after or 1.0
                request.waited += pause
                await asyncio.sleep(pause)
    return done


def check(
    accepted: Sequence[RequestResult],
    refused: Sequence[RequestResult],
    others: Sequence[RequestResult],
    obedient: Sequence[Obedience],
    bounds: Bounds,
) -> list[str]:
    """Promises that were not kept, one line each."""
    faults = []
    if others:
        faults.append(f"{len(others)} requests failed otherwise: {Counter(result.error for result in others)}")
    if not accepted or not refused:
        faults.append(f"{len(accepted)} accepted and {len(refused)} refused: no overload")
    for measure, bound in (("ttft", bounds.ttft), ("e2el", bounds.e2el)):
        values = [value for result in accepted if (value := getattr(result, measure)) is not None]
        if (p99 := percentile_ms(values, measure)) > bound * 1e3:
            faults.append(f"p99 {measure} of accepted requests is {p99:.0f} ms, the bound {bound * 1e3:.0f}")
    if (p99 := percentile_ms([result.e2el for result in refused], "refusal")) > REFUSAL_BOUND * 1e3:
        faults.append(f"p99 of refusals is {p99:.1f} ms, the bound {REFUSAL_BOUND * 1e3:.0f}")
    if silent := sum(result.retry_after is None or result.retry_after < 1 for result in refused):
        faults.append(f"{silent} refusals had no Retry-After of at least a second")
    if unserved := sum(not request.served for request in obedient):
        faults.append(f"{unserved} clients that obeyed Retry-After were not served in {_ATTEMPTS} attempts")
    return faults


def check_counts(results: Sequence[RequestResult], obedient: Sequence[Obedience], counted: Totals) -> list[str]:
    """Whether the metrics know of as many refusals and answers as the clients."""
    refused = sum(result.error == "http_429" for result in results)
    refused += sum(request.attempts - request.served for request in obedient)
    completed = sum(result.error is None for result in results) + sum(request.served for request in obedient)
    found = int(counted["tuili_requests_refused_total"]), int(sum(counted.finished.values()))
    if found != (refused, completed):
        return [f"refused and finished requests are {found} in metrics, {(refused, completed)} at the clients"]
    return []


class LagProbe:
    """How late this process's event loop runs: what of a latency is the client's own, as they share the cores."""

    PERIOD = 0.005

    def __init__(self) -> None:
        self._origin = time.perf_counter()
        self.lags: list[tuple[float, float]] = []
        """Pairs of seconds: when the probe ran, counted from its making, and how late that was."""

    async def run(self) -> None:
        """Measures until cancelled."""
        while True:
            due = time.perf_counter() + self.PERIOD
            await asyncio.sleep(self.PERIOD)
            now = time.perf_counter()
            self.lags.append((now - self._origin, now - due))

    def most(self, begin: float, end: float) -> float:
        """The greatest lateness between two moments, and one period more; seconds."""
        return max((lag for at, lag in self.lags if begin <= at <= end + self.PERIOD), default=0.0)


async def overload(
    http: httpx.AsyncClient, client: Client, prompts: SyntheticPrompts, *, rate: float, duration: float, obedient: int
) -> tuple[list[RequestResult], list[Obedience], Totals, LagProbe]:
    """The open loop, and beside it the clients that obey; returns with a server at rest, and what it counted."""
    before = await totals_at_rest(http)
    load = Load(client.send, prompts.generate("overload"), duration=duration)
    end = time.perf_counter() + duration
    probe = LagProbe()
    probing = asyncio.create_task(probe.run())
    gc.collect()
    gc.disable()  # A collection would hold up this client's clock; a minute's garbage fits the memory.
    async with asyncio.TaskGroup() as group:
        running = group.create_task(load.open(arrival_times(rate, 1.0, 0)))
        obeying = [group.create_task(obey(client, prompts, number, end)) for number in range(obedient)]
    probing.cancel()
    gc.enable()
    after = await totals_at_rest(http)
    requests = [request for task in obeying for request in task.result()]
    return running.result().results, requests, after.since(before), probe


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Parameters of a run."""

    model: str
    serve_args: tuple[str, ...]
    max_num_seqs: int
    max_queue: int
    factor: float
    capacity_duration: float
    duration: float
    obedient: int
    input_len: int
    output_len: int


async def measure(url: str, plan: Plan) -> tuple[dict[str, Any], list[str]]:
    """Measures the capacity, then overloads; returns the figures and what was not kept."""
    prompts = SyntheticPrompts("words", (plan.input_len,), (plan.output_len,), 0, (1000, 30000))
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=None) as http:  # noqa: S113 - the client has one
        client = Client(http, Options(url=url, timeout=120.0), plan.model, 0)
        warm = await Load(client.send, itertools.islice(prompts.generate("warm-up"), 2)).closed(2)
        if any(result.error for result in warm.results):
            raise ServerError(f"a warm-up request failed: {warm.results[0].message}")
        capacity = await measure_capacity(
            client, prompts, concurrency=plan.max_num_seqs, duration=plan.capacity_duration
        )
        bounds = bounds_for(capacity, max_num_seqs=plan.max_num_seqs, max_queue=plan.max_queue)
        print(
            f"capacity {capacity.request_rate:.2f} requests/s; bounds for accepted ones at p99: first token within "
            f"{bounds.ttft:.2f} s, end within {bounds.e2el:.2f} s; refusals within {REFUSAL_BOUND * 1e3:.0f} ms",
            file=sys.stderr,
            flush=True,
        )
        rate = plan.factor * capacity.request_rate
        results, obedient, counted, probe = await overload(
            http, client, prompts, rate=rate, duration=plan.duration, obedient=plan.obedient
        )
    accepted = [result for result in results if result.error is None]
    refused = [result for result in results if result.error == "http_429"]
    others = [result for result in results if result.error not in (None, "http_429")]
    faults = check(accepted, refused, others, obedient, bounds) + check_counts(results, obedient, counted)
    figures = {
        "capacity": dataclasses.asdict(capacity),
        "bounds": dataclasses.asdict(bounds),
        "request_rate": rate,
        "requests": len(results),
        "accepted": len(accepted),
        "refused": len(refused),
        "failed": len(others),
        "goodput": len(accepted) / plan.duration,
        **describe([result.ttft for result in accepted if result.ttft is not None], "ttft"),
        **describe([result.e2el for result in accepted], "e2el"),
        **describe([result.e2el for result in refused], "refusal"),
        "max_refusal_ms": max((result.e2el for result in refused), default=0.0) * 1e3,
        "slow_refusals": [_slow(result, probe) for result in refused if result.e2el > REFUSAL_BOUND],
        "max_client_lag_ms": max((lag for _, lag in probe.lags), default=0.0) * 1e3,
        "retry_after": {f"{wait:g}": n for wait, n in Counter(r.retry_after or 0.0 for r in refused).items()},
        "max_send_lag_ms": max((r.started - r.scheduled for r in results if r.scheduled is not None), default=0.0)
        * 1e3,
        "obedient_requests": len(obedient),
        "obedient_served": sum(request.served for request in obedient),
        "obedient_attempts": dict(sorted(Counter(request.attempts for request in obedient).items())),
        "obedient_max_waited": max((request.waited for request in obedient), default=0.0),
        "engine_restarts": int(counted["tuili_engine_restarts_total"]),
    }
    return figures, faults


def _slow(result: RequestResult, probe: LagProbe) -> dict[str, float]:
    """A refusal over the bound, and how late its client's own event loop was meanwhile; milliseconds."""
    lag = probe.most(result.started, result.started + result.e2el)
    return {"e2el_ms": round(result.e2el * 1e3, 1), "client_lag_ms": round(lag * 1e3, 1)}


@click.command()
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--max-num-seqs", default=16, show_default=True, help="Sequences that run at once.")
@click.option("--max-queue", default=16, show_default=True, help="Requests that may wait.")
@click.option("--factor", default=2.0, show_default=True, help="Arrivals, in capacities.")
@click.option("--capacity-duration", default=30.0, show_default=True, help="Seconds of the closed loop.")
@click.option("--duration", default=60.0, show_default=True, help="Seconds of the overload.")
@click.option("--obedient", default=4, show_default=True, help="Clients that do as Retry-After says.")
@click.option("--input-len", default=32, show_default=True, help="Words of a prompt.")
@click.option("--output-len", default=16, show_default=True, help="Tokens of an answer.")
@click.option("--serve-arg", "serve_args", multiple=True, help="Further argument(s) of tuili serve.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=RESULTS / "overload.jsonl", help="Where the row goes."
)
def main(output: Path, **options: Any) -> None:
    """Starts a server, measures what it can take, and asks twice as much of it."""
    plan = Plan(**options)
    row = {**context("overload"), **dataclasses.asdict(plan)}
    bounded = (f"--max-num-seqs={plan.max_num_seqs}", f"--max-queue={plan.max_queue}")
    try:
        with served("--model", plan.model, *bounded, *plan.serve_args) as server:
            figures, faults = asyncio.run(measure(server.url, plan))
    except ServerError as error:
        figures, faults = {}, [str(error)]
    for fault in faults:
        print(fault, file=sys.stderr)
    report({**row, "load_average_after": os.getloadavg()[0], **figures, "faults": faults}, output)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
