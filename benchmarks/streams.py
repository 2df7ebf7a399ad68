"""Many streams at once for a minute: are they right, and is every token accounted for? The last line is JSON.

python -m benchmarks.streams

Every streamed text is compared with the answer, not streamed, that the same request got on an idle server. Some clients
leave in mid-stream. At the end the clients' usage, the server's ledger (its log) and its metrics must name the same
totals, and nothing may be left running or held. Exit code 1 if anything of that fails.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx
import msgspec

from app.bench.summary import describe
from app.client.sse import DONE, EventDecoder, Usage, decode_chunk
from benchmarks.rows import RESULTS, context, report
from benchmarks.served import LedgerLine, ServerError, Totals, read_ledger, served, totals, totals_at_rest

ROUTE = "/v1/completions"
_PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):",
    "The three laws of thermodynamics say that",
    "水是由",
    "Dear Sir or Madam,\n\nI am writing to",
    "1, 1, 2, 3, 5, 8,",
    "Q: Why is the sky blue?\nA:",
)
_OUTPUT_LENS = (8, 16, 24)
_MAX_CHUNKS_BEFORE_LEAVING = 8
_MAX_SHOWN = 5
_LEDGER_PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What one answer came to."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str | None


@dataclass(kw_only=True, slots=True)
class Outcome:
    """One streamed request, as its client saw it."""

    request_id: str
    case: int
    leaves_after: int | None
    """Chunks with text after which this client goes away; None for one that stays."""
    text: str = ""
    usage: Usage | None = None
    """Usage in the last chunk that had one."""
    finished: bool = False
    """Whether the stream came to ``[DONE]``."""
    error: str | None = None
    times: list[float] = field(default_factory=list)
    """Instants of the chunks with text, in seconds from the request's start."""


def cases() -> list[dict[str, Any]]:
    """The requests: each prompt greedy and seeded, of several lengths."""
    greedy = {"temperature": 0.0}
    bodies = []
    for (index, prompt), sampling in itertools.product(
        enumerate(_PROMPTS), (greedy, {"temperature": 0.8, "top_p": 0.95})
    ):
        seed = {} if sampling is greedy else {"seed": 1000 + index}
        bodies.append({"prompt": prompt, "max_tokens": _OUTPUT_LENS[index % len(_OUTPUT_LENS)], **sampling, **seed})
    return bodies


class _Answer(msgspec.Struct, frozen=True):
    choices: list[dict[str, Any]]
    usage: Usage


async def ask_whole(http: httpx.AsyncClient, body: Mapping[str, Any]) -> Answer:
    """The answer to a request, not streamed."""
    response = (await http.post(ROUTE, json=body)).raise_for_status()
    whole = msgspec.json.decode(response.content, type=_Answer)
    (choice,) = whole.choices
    return Answer(choice["text"], whole.usage.prompt_tokens, whole.usage.completion_tokens, choice["finish_reason"])


async def ask_stream(http: httpx.AsyncClient, body: Mapping[str, Any], outcome: Outcome) -> None:
    """Streams a request into ``outcome``; leaves when its time has come. A failure is part of the outcome."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    headers = {"X-Request-Id": outcome.request_id, "Accept-Encoding": "identity"}
    started = time.perf_counter()
    try:
        streamed = http.stream("POST", ROUTE, json={**body, "stream": True, "stream_options": options}, headers=headers)
        async with streamed as response:
            if response.status_code != httpx.codes.OK:
                outcome.error = f"http_{response.status_code}"
                return
            await _read(response, outcome, started)
    except (httpx.HTTPError, msgspec.DecodeError) as error:
        outcome.error = type(error).__name__
    if outcome.error is None and not outcome.finished and outcome.leaves_after is None:
        outcome.error = "incomplete"


async def _read(response: httpx.Response, outcome: Outcome, started: float) -> None:
    decoder = EventDecoder()
    async for piece in response.aiter_bytes():
        for data in decoder.feed(piece):
            if data == DONE:
                outcome.finished = True
                continue
            chunk = decode_chunk(data)
            if chunk.error:
                outcome.error = f"stream_error: {chunk.error}"
                return
            outcome.usage = chunk.usage or outcome.usage
            if chunk.text:
                outcome.text += chunk.text
                outcome.times.append(time.perf_counter() - started)
            if outcome.leaves_after is not None and len(outcome.times) >= outcome.leaves_after:
                return


async def run_streams(
    http: httpx.AsyncClient, *, concurrency: int, duration: float, leaving: float, seed: int
) -> list[Outcome]:
    """A closed loop: each of ``concurrency`` clients asks again as soon as it is answered, for ``duration`` seconds.

    Args:
        leaving: share of the requests whose client goes away after a few chunks.
    """
    rng = random.Random(seed)
    bodies = cases()
    outcomes: list[Outcome] = []
    end = time.perf_counter() + duration

    async def client() -> None:
        while time.perf_counter() < end:
            leaves_after = rng.randrange(1, _MAX_CHUNKS_BEFORE_LEAVING) if rng.random() < leaving else None
            number = len(outcomes)
            outcome = Outcome(request_id=f"s{number}", case=number % len(bodies), leaves_after=leaves_after)
            outcomes.append(outcome)
            await ask_stream(http, bodies[outcome.case], outcome)

    async with asyncio.TaskGroup() as clients:
        for _ in range(concurrency):
            clients.create_task(client())
    return outcomes


def check_texts(outcomes: Sequence[Outcome], references: Sequence[Answer]) -> list[str]:
    """What is wrong with the answers: errors, other texts than expected (beginnings, of clients that left), usage."""
    faults = []
    for outcome in outcomes:
        reference = references[outcome.case]
        if outcome.error is not None:
            faults.append(f"{outcome.request_id}: {outcome.error}")
        elif outcome.finished:
            if outcome.text != reference.text:
                faults.append(f"{outcome.request_id}: streamed {outcome.text!r}, not {reference.text!r}")
            used = outcome.usage and (outcome.usage.prompt_tokens, outcome.usage.completion_tokens)
            if used != (reference.prompt_tokens, reference.completion_tokens):
                faults.append(f"{outcome.request_id}: usage {used}, not {reference}")
        elif not reference.text.startswith(outcome.text):
            faults.append(f"{outcome.request_id}: streamed {outcome.text!r}, which does not begin {reference.text!r}")
    return faults


def check_account(outcomes: Sequence[Outcome], ledger: Mapping[str, LedgerLine], counted: Totals) -> list[str]:
    """Where the clients' usage, the server's ledger and its metrics differ.

    A client that left knows less than the server sent, so its line in the ledger stands for it; the line must not
    name less than what the client saw.
    """
    faults = []
    prompt = delivered = generated = 0
    reasons: Counter[str] = Counter()
    for outcome in outcomes:
        line = ledger.get(f"cmpl-{outcome.request_id}-0")
        if line is None:
            faults.append(f"{outcome.request_id}: no line in the ledger")
            continue
        seen = outcome.usage or Usage()
        if outcome.finished:
            prompt, delivered = prompt + seen.prompt_tokens, delivered + seen.completion_tokens
            if (line.prompt_tokens, line.completion_tokens) != (seen.prompt_tokens, seen.completion_tokens):
                faults.append(f"{outcome.request_id}: the client was told {seen}, the ledger says {line}")
        else:
            prompt, delivered = prompt + line.prompt_tokens, delivered + line.completion_tokens
            if line.completion_tokens < seen.completion_tokens:
                faults.append(f"{outcome.request_id}: the client saw {seen}, the ledger says {line}")
        generated += line.generated_tokens
        reasons.update(line.finish_reasons)
    sums = {
        "vllm:prompt_tokens_total": prompt,
        "vllm:generation_tokens_total": generated,
        "tuili_delivered_tokens_total": delivered,
    }
    faults += [f"{name} is {counted[name]:g}, the requests sum to {sum_}" for name, sum_ in sums.items()
               if counted[name] != sum_]  # fmt: skip
    by_reason = {reason: int(count) for reason, count in counted.finished.items() if count}
    if by_reason != dict(reasons):
        faults.append(f"vllm:request_success_total is {by_reason}, the requests ended {dict(reasons)}")
    return faults


async def _ledger_of(outcomes: Sequence[Outcome], log: Path) -> dict[str, LedgerLine]:
    """The ledger once every request is in it; a log line may come a moment after the answer."""
    deadline = time.monotonic() + _LEDGER_PATIENCE
    while True:
        ledger = read_ledger(await asyncio.to_thread(log.read_bytes))
        missing = [outcome for outcome in outcomes if f"cmpl-{outcome.request_id}-0" not in ledger]
        if not missing or time.monotonic() > deadline:
            return ledger
        await asyncio.sleep(0.1)


async def measure(
    url: str, log: Path, *, concurrency: int, duration: float, leaving: float, seed: int
) -> tuple[dict[str, Any], list[str]]:
    """Runs the load against a server; returns the figures and the faults, an empty list when all is right."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120) as http:
        references = [await ask_whole(http, body) for body in cases()]
        before = await totals_at_rest(http)
        started = time.perf_counter()
        outcomes = await run_streams(http, concurrency=concurrency, duration=duration, leaving=leaving, seed=seed)
        elapsed = time.perf_counter() - started
        ledger = await _ledger_of(outcomes, log)
        faults = check_texts(outcomes, references)
        try:
            after = await totals_at_rest(http)
        except ServerError as error:
            faults.append(str(error))
            after = await totals(http)
        counted = after.since(before)
        faults += check_account(outcomes, ledger, counted)
    return _figures(outcomes, counted, elapsed), faults


def _figures(outcomes: Sequence[Outcome], counted: Totals, elapsed: float) -> dict[str, Any]:
    done = [outcome for outcome in outcomes if outcome.finished]
    gaps = [later - earlier for outcome in done for earlier, later in itertools.pairwise(outcome.times)]
    return {
        "duration": round(elapsed, 3),
        "requests": len(outcomes),
        "completed": len(done),
        "left": sum(not outcome.finished and outcome.error is None for outcome in outcomes),
        "errors": dict(Counter(outcome.error for outcome in outcomes if outcome.error)),
        "prompt_tokens": int(counted["vllm:prompt_tokens_total"]),
        "generation_tokens": int(counted["vllm:generation_tokens_total"]),
        "delivered_tokens": int(counted["tuili_delivered_tokens_total"]),
        "request_success": {reason: int(count) for reason, count in counted.finished.items()},
        "engine_restarts": int(counted["tuili_engine_restarts_total"]),
        "output_throughput": round(counted["tuili_delivered_tokens_total"] / elapsed, 1),
        **describe([outcome.times[0] for outcome in done if outcome.times], "ttft"),
        **describe(gaps, "itl"),
    }


@click.command()
@click.option("--concurrency", default=64, show_default=True, help="Streams at once.")
@click.option("--duration", default=60.0, show_default=True, help="Seconds after which no stream starts.")
@click.option("--leaving", default=0.05, show_default=True, help="Share of the clients that leave in mid-stream.")
@click.option("--seed", default=0, show_default=True, help="Of who leaves when.")
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--serve-arg", multiple=True, help="Further argument(s) of tuili serve, e.g. --serve-arg=--threads=2.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=RESULTS / "streams.jsonl", help="Where the row goes."
)
def main(
    concurrency: int, duration: float, leaving: float, seed: int, model: str, serve_arg: tuple[str, ...], output: Path
) -> None:
    """Starts a server, keeps it busy with streams, and checks every text and every count."""
    load = {"concurrency": concurrency, "leaving": leaving, "seed": seed}
    row = {**context("streams"), "model": model, "serve_args": list(serve_arg), **load}
    try:
        with served("--model", model, *serve_arg) as server:
            figures, faults = asyncio.run(
                measure(server.url, server.log, concurrency=concurrency, duration=duration, leaving=leaving, seed=seed)
            )
    except ServerError as error:
        figures, faults = {}, [str(error)]
    for fault in faults[:_MAX_SHOWN]:
        print(fault, file=sys.stderr)
    report({**row, "load_average_after": os.getloadavg()[0], **figures, "num_faults": len(faults),
            "faults": faults[:_MAX_SHOWN]}, output)  # fmt: skip
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
