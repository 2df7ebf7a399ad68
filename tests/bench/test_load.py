"""Runs over loopback against the whole server with a fake model."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import pytest

from app.bench.arrivals import arrival_times
from app.bench.load import Load, LoadRun
from app.bench.prompts import Prompt
from app.bench.summary import summarise
from tests.api.conftest import Server, start_server
from tests.bench.conftest import SEED, client, prompts
from tests.serving.rig import repeat

LETTERS = "abcdefgh"
"""One character a token, so that every token is a chunk with text."""


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
async def test_counts_of_a_closed_loop(endpoint: str) -> None:
    asked = [Prompt("x" * length, 6) for length in (3, 14, 15, 9, 2, 6, 5, 3, 5, 8)]
    async with start_server(next_token=repeat(LETTERS)) as server, client(server.url, endpoint=endpoint) as sender:
        run = await Load(sender.send, asked).closed(3)
        records = server.rig.ledger.records
    assert [result.error for result in run.results] == [None] * 10
    assert sorted(result.index for result in run.results) == list(range(10))
    assert {(result.output_tokens, result.output_chunks, len(result.itl)) for result in run.results} == {(6, 6, 5)}
    assert all(result.has_usage for result in run.results)
    for result in run.results:
        assert result.ttft is not None
        assert result.tpot is not None
        assert 0 < result.ttft <= result.ttft + sum(result.itl) <= result.e2el
        assert result.tpot >= sum(result.itl) / 5 - 1e-9
    figures = summarise(run, {})
    assert figures["total_output_tokens"] == 60 == sum(record.usage.completion_tokens for record in records)
    assert figures["total_input_tokens"] == sum(record.usage.prompt_tokens for record in records)
    assert figures["duration"] == pytest.approx(max(result.started + result.e2el for result in run.results))


async def test_never_more_than_the_concurrency_under_way(server: Server) -> None:
    seen: list[int] = []
    async with client(server.url) as sender:
        await Load(sender.send, prompts(12), on_change=lambda run: seen.append(run.num_running)).closed(4)
    assert max(seen) == 4
    assert seen[-1] == 0


async def test_distinct_prompts_hit_no_cache_and_a_shared_prefix_is_told(server: Server) -> None:
    async with client(server.url) as sender:
        fresh = await Load(sender.send, prompts(6)).closed(2)
        shared = await Load(sender.send, prompts(4, input_len=16, prefix_len=64)).closed(1)
        again = await Load(sender.send, prompts(6)).closed(2)
    assert summarise(fresh, {})["cached_tokens"] == 0
    assert [result.cached_tokens for result in shared.results] == [0, 64, 64, 64]
    assert summarise(again, {})["cached_tokens"] == 6 * 32, "40 tokens hold two full blocks of 16"


async def test_an_open_loop_follows_the_seed(server: Server) -> None:
    due = list(itertools.islice(arrival_times(200.0, 1.0, SEED), 8))
    async with client(server.url) as sender:
        run = await Load(sender.send, prompts(8)).open(arrival_times(200.0, 1.0, SEED))
    in_order = sorted(run.results, key=lambda result: result.index)
    assert [result.scheduled for result in in_order] == due
    assert all(result.started >= result.scheduled for result in in_order if result.scheduled is not None)
    assert summarise(run, {})["max_send_lag_ms"] >= 0


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    async with start_server(max_num_seqs=1, delay=0.01) as server, client(server.url) as sender:
        seen: list[int] = []
        load = Load(sender.send, prompts(6, output_len=20), on_change=lambda run: seen.append(run.num_running))
        await load.open([0.0] * 6)
    assert max(seen) == 6


async def test_refusals_are_counted_by_kind() -> None:
    async with start_server(max_num_seqs=1, max_queue=1, delay=0.01) as server, client(server.url) as sender:
        run = await Load(sender.send, prompts(8, output_len=10)).open([0.0] * 8)
    figures = summarise(run, {})
    assert figures["completed"] >= 1
    assert figures["errors"] == {"http_429": figures["failed"]}
    assert figures["completed"] + figures["failed"] == 8
    assert figures["total_output_tokens"] == 10 * figures["completed"]
    assert figures["error_examples"]["http_429"]


async def test_steps_that_fail_are_errors_of_the_requests() -> None:
    async with start_server(next_token=repeat(LETTERS)) as server, client(server.url) as sender:
        runner = server.rig.runner
        assert runner is not None
        # The third token of the second request, then the first of the third.
        runner.fail_collect = lambda step: step.step in (10, 11)
        run = await Load(sender.send, prompts(6, output_len=8)).closed(1)
    assert [result.error for result in run.results] == [None, "stream_error", "http_500", None, None, None]
    figures = summarise(run, {})
    assert figures["errors"] == {"stream_error": 1, "http_500": 1}
    assert figures["total_output_tokens"] == 4 * 8


async def test_a_server_that_goes_away_in_the_middle() -> None:
    three_done, refused = asyncio.Event(), asyncio.Event()

    def on_change(run: LoadRun) -> None:
        if len(run.results) >= 3:
            three_done.set()
        if run.results and run.results[-1].error == "connect":
            refused.set()

    async with contextlib.AsyncExitStack() as rest:
        async with start_server() as server:
            sender = await rest.enter_async_context(client(server.url))
            load = Load(sender.send, itertools.cycle(prompts(7)), on_change=on_change)
            running = asyncio.create_task(load.closed(1, stop=refused))
            await three_done.wait()
        run = await running
    figures = summarise(run, {})
    assert figures["completed"] >= 3
    assert figures["errors"]["connect"] >= 1
    assert figures["completed"] + figures["failed"] == len(run.results)


async def test_a_request_of_its_own_error_is_told(server: Server) -> None:
    async with client(server.url) as sender:
        run = await Load(sender.send, [Prompt([1] * 600, 5), Prompt("fine", 5)]).closed(1)
    assert [result.error for result in run.results] == ["http_400", None]
    assert "512" in (run.results[0].message or "")


async def test_the_duration_caps_starts_and_finishes_what_is_under_way(server: Server) -> None:
    async with client(server.url) as sender:
        endless = itertools.cycle(prompts(3))
        closed = await Load(sender.send, endless, duration=0.2).closed(2)
        opened = await Load(sender.send, endless, duration=0.2).open(arrival_times(100.0, 1.0, SEED))
    due = list(itertools.takewhile(lambda arrival: arrival < 0.2, arrival_times(100.0, 1.0, SEED)))
    assert len(opened.results) == len(due)
    assert closed.results
    assert closed.num_running == opened.num_running == 0
    assert not any(result.error for result in (*closed.results, *opened.results))


async def test_no_request_starts_when_the_time_is_up(server: Server) -> None:
    async with client(server.url) as sender:
        closed = await Load(sender.send, prompts(3), duration=0.0).closed(2)
        opened = await Load(sender.send, prompts(3), duration=0.0).open([0.0, 0.1])
    assert closed.num_started == opened.num_started == 0


async def test_a_stop_cuts_off_and_keeps_what_was_measured() -> None:
    stop = asyncio.Event()

    def on_change(run: LoadRun) -> None:
        if len(run.results) >= 5:
            stop.set()

    async with start_server(delay=0.002) as server, client(server.url) as sender:
        load = Load(sender.send, itertools.cycle(prompts(7)), on_change=on_change)
        run = await load.closed(3, stop)
        await server.rig.settled()
    assert run.interrupted
    assert len(run.results) >= 5
    figures = summarise(run, {})
    assert figures["cancelled"] == run.num_started - len(run.results) > 0
    assert figures["failed"] == 0


async def test_a_bug_in_sending_is_not_swallowed() -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as raised:
        await Load(broken, prompts(2)).closed(1)  # type: ignore[arg-type]
    assert raised.group_contains(ZeroDivisionError)


async def test_greedy_unless_told_and_extra_fields_go_along() -> None:
    async with client("http://h/v1/") as sender:
        body = sender.body(3, Prompt([5], None))
    assert (body["temperature"], body["ignore_eos"], body["max_tokens"]) == (0.0, True, 128)
    assert "seed" not in body
    async with client("http://h", temperature=0.5, ignore_eos=False, extra_body={"top_k": 3}) as sender:
        body = sender.body(3, Prompt("x", 4))
    assert body["seed"] == SEED + 3
    assert body["top_k"] == 3
    assert "ignore_eos" not in body
