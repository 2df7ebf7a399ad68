"""Hostile forms beside neighbours: what do streams feel of schemas made to cost dear? The last line is JSON.

python -m benchmarks.bench_hostile

Neighbours stream text without a form. In turns they have the server to themselves (``quiet``), share it with requests
that come at a steady rate and ask for a few free tokens (``plain``), and with as many whose forms are hostile
(``hostile``): deep, cyclic and self-multiplying schemas, huge enumerations, catastrophic expressions, no two alike. The
figures are gaps between a neighbour's chunks; a ratio is the median over the rounds of a phase's figure over the quiet
one's beside it. Exit code 1 if the hostile median is over the limit, or a request is not answered or refused in time.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np

from app.bench.summary import describe
from benchmarks.hostile import hostile
from benchmarks.rows import RESULTS, context, report
from benchmarks.served import ServerError, served, totals_at_rest
from benchmarks.streams import ROUTE, Outcome, ask_stream

PHASES = ("quiet", "plain", "hostile")
TOLERATED = (httpx.codes.OK, httpx.codes.BAD_REQUEST, httpx.codes.TOO_MANY_REQUESTS)
"""Answers to a hostile request: text of its form, or a refusal."""
_MAX_SHOWN = 10


@dataclass(slots=True)
class Visit:
    """A request that came beside the neighbours."""

    kind: str
    status: int | None
    """None where no answer came."""
    seconds: float


@dataclass(slots=True)
class Phase:
    """What was seen in one phase of one round."""

    gaps: list[float] = field(default_factory=list)
    """Seconds between chunks of a neighbour."""
    visits: list[Visit] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """Of neighbours."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Parameters of a run."""

    rounds: int
    duration: float
    """Seconds of a phase after which no neighbour begins another answer."""
    neighbours: int
    output_len: int
    rate: float
    """Visits a second."""
    visit_len: int
    """Most tokens of a visit's answer."""
    bound: float
    """Seconds within which each visit is answered."""
    limit: float
    """Most of the hostile median over the quiet one."""


def ratio(rounds: Sequence[Mapping[str, Phase]], phase: str, percentile: float) -> float:
    """The median over rounds of a percentile of a phase's gaps over that of the quiet one's; NaN without gaps."""
    ratios = [
        float(np.percentile(each[phase].gaps, percentile) / np.percentile(each["quiet"].gaps, percentile))
        for each in rounds
        if each[phase].gaps and each["quiet"].gaps
    ]
    return round(statistics.median(ratios), 3) if ratios else float("nan")


def check(rounds: Sequence[Mapping[str, Phase]], plan: Plan) -> list[str]:
    """What the server did not keep to, one line each."""
    faults = [f"a neighbour failed: {error}" for each in rounds for phase in each.values() for error in phase.errors]
    for visit in (visit for each in rounds for phase in each.values() for visit in phase.visits):
        if visit.status not in TOLERATED:
            faults.append(f"{visit.kind} was answered {visit.status}")
        elif visit.seconds > plan.bound:
            faults.append(f"{visit.kind} took {visit.seconds:.1f} s, the bound is {plan.bound:g}")
    if not (found := ratio(rounds, "hostile", 50)) <= plan.limit:
        faults.append(
            f"neighbours' median gap is {found:g} of the quiet one beside hostile forms, the limit {plan.limit:g}"
        )
    return faults


class Bench:
    """Neighbours and visitors of one server."""

    def __init__(self, http: httpx.AsyncClient, plan: Plan) -> None:
        self._http = http
        self._plan = plan
        self._numbers = itertools.count()

    async def phase(self, kind: str) -> Phase:
        """Runs one phase; returns with a server at rest."""
        seen = Phase()
        end = time.perf_counter() + self._plan.duration
        visiting = asyncio.create_task(self._visit(kind, seen)) if kind != "quiet" else None
        async with asyncio.TaskGroup() as neighbours:
            for number in range(self._plan.neighbours):
                neighbours.create_task(self._neighbour(number, end, seen))
        if visiting is not None:
            visiting.cancel()
            await asyncio.gather(visiting, return_exceptions=True)
        await totals_at_rest(self._http, patience=60.0)
        return seen

    async def _neighbour(self, number: int, end: float, seen: Phase) -> None:
        body = {
            "prompt": f"{number}. Once upon a time, in a village by the sea,",
            "max_tokens": self._plan.output_len,
            "temperature": 0.8,
            "seed": number,
            "ignore_eos": True,
        }
        while time.perf_counter() < end:
            outcome = Outcome(request_id=f"n{next(self._numbers)}", case=0, leaves_after=None)
            await ask_stream(self._http, body, outcome)
            if outcome.error is not None:
                seen.errors.append(outcome.error)
                return
            seen.gaps += [later - earlier for earlier, later in itertools.pairwise(outcome.times)]

    async def _visit(self, phase: str, seen: Phase) -> None:
        """Sends visits at a steady rate until cancelled; those under way are waited for up to their bound."""
        started = time.perf_counter()
        under_way: set[asyncio.Task[None]] = set()
        try:
            for index in itertools.count():
                await asyncio.sleep(max(0.0, started + index / self._plan.rate - time.perf_counter()))
                kind, form = hostile(next(self._numbers)) if phase == "hostile" else ("plain", {})
                task = asyncio.create_task(self._send(kind, form, seen))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
        finally:
            await asyncio.gather(*under_way)

    async def _send(self, kind: str, form: Mapping[str, Any], seen: Phase) -> None:
        body = {"prompt": "The answer:", "max_tokens": self._plan.visit_len, "temperature": 1, **form}
        started = time.perf_counter()
        status = None
        try:
            status = (await self._http.post(ROUTE, json=body)).status_code
        except httpx.HTTPError as error:
            print(f"{kind}: {error!r}", file=sys.stderr)
        seen.visits.append(Visit(kind, status, time.perf_counter() - started))


async def measure(url: str, plan: Plan) -> list[dict[str, Phase]]:
    """Runs the rounds, each phase of a round in another order than in the last; returns what was seen."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=4 * plan.bound) as http:
        bench = Bench(http, plan)
        await bench.phase("quiet")  # warms up
        rounds: list[dict[str, Phase]] = []
        for number in range(plan.rounds):
            turn = number % len(PHASES)
            rounds.append({kind: await bench.phase(kind) for kind in (*PHASES[turn:], *PHASES[:turn])})
            print(f"round {number + 1} of {plan.rounds}: {_ratios(rounds[-1:])}", file=sys.stderr, flush=True)
    return rounds


def _ratios(rounds: Sequence[Mapping[str, Phase]]) -> dict[str, float]:
    return {
        f"{phase}_{name}_ratio": ratio(rounds, phase, percentile)
        for phase in PHASES[1:]
        for name, percentile in (("median", 50), ("p99", 99))
    }


def figures(rounds: Sequence[Mapping[str, Phase]]) -> dict[str, Any]:
    """A row's figures: ratios, gaps of each phase over all rounds, and what became of the hostile requests by kind."""
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    longest: defaultdict[str, float] = defaultdict(float)
    for visit in (visit for each in rounds for visit in each["hostile"].visits):
        answers[visit.kind][str(visit.status)] += 1
        longest[visit.kind] = max(longest[visit.kind], round(visit.seconds, 3))
    gaps = {phase: describe([gap for each in rounds for gap in each[phase].gaps], "itl") for phase in PHASES}
    return {
        **_ratios(rounds),
        "gaps": gaps,
        "visits": {phase: sum(len(each[phase].visits) for each in rounds) for phase in PHASES[1:]},
        "hostile_answers": {kind: dict(counts) for kind, counts in answers.items()},
        "hostile_longest_s": dict(longest),
    }


@click.command()
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--rounds", default=6, show_default=True)
@click.option("--duration", default=12.0, show_default=True, help="Seconds of a phase.")
@click.option("--neighbours", default=8, show_default=True, help="Streams at once.")
@click.option("--output-len", default=128, show_default=True, help="Tokens of a neighbour's answer.")
@click.option("--rate", default=1.0, show_default=True, help="Requests a second beside the neighbours.")
@click.option("--visit-len", default=8, show_default=True, help="Most tokens of their answers.")
@click.option("--bound", default=15.0, show_default=True, help="Seconds within which each of them is answered.")
@click.option("--limit", default=1.2, show_default=True, help="Most of the hostile median gap over the quiet one.")
@click.option("--serve-arg", multiple=True, help="Further argument(s) of tuili serve, e.g. --serve-arg=--threads=2.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=RESULTS / "hostile.jsonl", help="Where the row goes."
)
def main(model: str, serve_arg: tuple[str, ...], output: Path, **options: Any) -> None:
    """Starts a server, streams from it in peace and beside strangers, and compares."""
    plan = Plan(**options)
    row = {**context("hostile"), "model": model, "serve_args": list(serve_arg), **options}
    rounds: list[dict[str, Phase]] = []
    try:
        with served("--model", model, *serve_arg) as server:
            rounds = asyncio.run(measure(server.url, plan))
        faults = check(rounds, plan)
    except ServerError as error:
        faults = [str(error)]
    for fault in faults[:_MAX_SHOWN]:
        print(fault, file=sys.stderr)
    report({**row, "load_average_after": os.getloadavg()[0], **(figures(rounds) if rounds else {}),
            "num_faults": len(faults), "faults": faults[:_MAX_SHOWN]}, output)  # fmt: skip
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
