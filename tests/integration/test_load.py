"""Many clients at once: every text right, every token accounted for; and a full server says so."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from benchmarks.served import LedgerLine, Totals, read_ledger, totals_at_rest
from benchmarks.streams import Outcome, ask_stream, ask_whole, cases, check_account, check_texts
from tests.integration.server import Server, engine_of, start_server

STREAMS = 64
LEAVING = 8
"""Every so many clients one leaves in mid-stream."""
SLOTS, QUEUE, REFUSED = 2, 3, 16
POLLS = 600


async def _ledger_of(server: Server, outcomes: list[Outcome]) -> dict[str, LedgerLine]:
    for _ in range(POLLS):
        ledger = read_ledger("".join(server.lines).encode())
        if all(f"cmpl-{outcome.request_id}-0" in ledger for outcome in outcomes):
            return ledger
        await asyncio.sleep(0.05)
    raise AssertionError("requests are missing in the ledger")


async def test_64_streams_equal_whole_answers_and_sum_to_the_metrics(tiny_llama: Path) -> None:
    with start_server("--model", str(tiny_llama), "--threads", "1") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
            bodies = [{**body, "ignore_eos": True} for body in cases()]
            references = [await ask_whole(http, body) for body in bodies]
            before = await totals_at_rest(http)
            outcomes = [
                Outcome(request_id=f"s{n}", case=n % len(bodies), leaves_after=1 if n % LEAVING == 0 else None)
                for n in range(STREAMS)
            ]
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as streams:
                await asyncio.gather(*(ask_stream(streams, bodies[outcome.case], outcome) for outcome in outcomes))
            ledger = await _ledger_of(server, outcomes)
            counted = (await totals_at_rest(http)).since(before)
    assert sum(outcome.finished for outcome in outcomes) >= STREAMS - STREAMS // LEAVING
    assert check_texts(outcomes, references) == []
    assert check_account(outcomes, ledger, counted) == []
    # The checks above can fail: one token more in the metrics, one letter more in an answer.
    more = Totals({**counted.values, "vllm:generation_tokens_total": counted["vllm:generation_tokens_total"] + 1}, {})
    assert len(check_account(outcomes, ledger, more)) == 2
    outcomes[1].text += "x"
    assert len(check_texts(outcomes, references)) == 1


async def _until_admitted(http: httpx.AsyncClient, request_ids: list[str]) -> None:
    for _ in range(POLLS):
        answers = [await http.get(f"/v1/requests/{request_id}") for request_id in request_ids]
        if all(answer.status_code == httpx.codes.OK for answer in answers):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("requests that should wait do not show")


async def test_a_full_queue_refuses_at_once_and_serves_what_it_took(tiny_llama: Path) -> None:
    arguments = ("--max-num-seqs", str(SLOTS), "--max-queue", str(QUEUE), "--threads", "1")
    body = {"prompt": "Once", "max_tokens": 20, "ignore_eos": True}
    with start_server("--model", str(tiny_llama), *arguments) as server:
        engine = engine_of(server.pid)
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
            engine.suspend()  # so that the queue stays as full as it is, and no refusal can wait for the engine
            try:
                ids = [f"a{n}" for n in range(SLOTS + QUEUE)]
                asked = [
                    asyncio.create_task(http.post("/v1/completions", json=body, headers={"X-Request-Id": request_id}))
                    for request_id in ids
                ]
                await _until_admitted(http, ids)
                streamed = {**body, "stream": True}
                refused = [await http.post("/v1/completions", json=streamed) for _ in range(REFUSED)]
            finally:
                engine.resume()
            accepted = await asyncio.gather(*asked)
            counted = await totals_at_rest(http)
            later = await http.post("/v1/completions", json=body)
    assert [answer.status_code for answer in refused] == [429] * REFUSED
    assert {answer.json()["error"]["code"] for answer in refused} == {"overloaded"}
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    assert [answer.json()["usage"]["completion_tokens"] for answer in accepted] == [20] * len(ids)
    assert counted["tuili_requests_refused_total"] == REFUSED
    assert counted.finished["length"] == len(ids)
    assert later.status_code == httpx.codes.OK
