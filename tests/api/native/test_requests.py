"""Asking for a request and cancelling it; where the time of an answer went."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import openai
import pytest

from tests.api.conftest import Server, start_server
from tests.serving.rig import MODEL, until

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES: Any = [{"role": "user", "content": "Hi"}]


async def state(server: Server, request_id: str) -> dict[str, Any]:
    answer = await server.http.get(f"/v1/requests/{request_id}")
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    assert answer.headers["cache-control"] == "no-store"
    return content


async def test_through_a_life() -> None:
    async with start_server(delay=0.005, max_num_seqs=1) as server:
        ahead = asyncio.create_task(
            server.post(COMPLETIONS, {"prompt": "a", "max_tokens": 500}, headers={"X-Request-Id": "ahead"})
        )
        await until(lambda: server.rig.client.stats.generation_tokens_total > 0)
        body = {"prompt": ["abc", "defgh"], "max_tokens": 60, "n": 2}
        posted = asyncio.create_task(server.post(COMPLETIONS, body, headers={"X-Request-Id": "a/b"}))
        await until(lambda: server.rig.client.in_flight == 5)
        queued = await state(server, "a/b")
        assert (queued["status"], queued["generated_tokens"]) == ("queued", 0)
        assert queued["seconds"]["queue"] is None
        assert (await server.http.delete("/v1/requests/ahead")).status_code == 200
        await ahead
        before = server.rig.client.stats.generation_tokens_total
        await until(lambda: server.rig.client.stats.generation_tokens_total > before + 5)
        running = await state(server, "cmpl-a/b")
        assert running["id"] == "a/b"
        assert running["status"] == "running"
        assert (running["endpoint"], running["stream"]) == (COMPLETIONS, False)
        assert (running["prompts"], running["choices"], running["prompt_tokens"]) == (2, 4, 8)
        assert 0 < running["generated_tokens"] < 240
        assert running["finish_reasons"] == []
        usage = (await posted).json()["usage"]
        ended = await state(server, "a/b")
        assert ended["status"] == "finished"
        assert ended["finish_reasons"] == ["length"] * 4
        assert ended["completion_tokens"] == ended["generated_tokens"] == usage["completion_tokens"] == 240
        assert all(value is not None and value >= 0 for value in ended["seconds"].values())
        assert ended["seconds"]["total"] >= running["seconds"]["total"]


@pytest.mark.parametrize("request_id", ["nobody", "cmpl-nobody", "cmpl-", "a%20b", "x" * 5000])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_unknown_ids(shared_server: Server, method: str, request_id: str) -> None:
    answer = await shared_server.http.request(method, f"/v1/requests/{request_id}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "request_not_found"
    assert len(answer.text) < 400


async def test_cancelling_a_stream() -> None:
    async with start_server(delay=0.005) as server:
        body = {"messages": MESSAGES, "max_tokens": 400, "stream": True}
        async with server.http.stream("POST", CHAT, json=body) as answer:
            lines = answer.aiter_lines()
            first = json.loads((await anext(lines)).removeprefix("data: "))
            cancelled = await server.http.delete(f"/v1/requests/{first['id']}")
            await server.rig.settled()  # freed whether or not the client reads on
            rest = [line async for line in lines if line]
        assert cancelled.status_code == 200
        assert cancelled.json()["status"] == "cancelled"
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "request_cancelled"
        assert "[DONE]" not in rest[-1]
        assert not any('finish_reason":"stop' in line for line in rest)
        after = await state(server, first["id"])
        assert (after["status"], after["error_code"]) == ("cancelled", "request_cancelled")
        assert after["generated_tokens"] < 400
        (record,) = server.rig.ledger.records
        assert (record.error_code, [reason.value for reason in record.finish_reasons]) == (
            "request_cancelled",
            ["abort"],
        )


async def test_cancelling_a_whole_answer_with_several_prompts_and_one_that_waits() -> None:
    async with start_server(delay=0.005, max_num_seqs=1) as server:
        headers = {"X-Request-Id": "same"}
        body = {"prompt": ["a", "b"], "max_tokens": 400}
        posted = [asyncio.create_task(server.post(COMPLETIONS, body, headers=headers)) for _ in range(2)]
        await until(lambda: server.rig.client.in_flight == 4 and server.rig.client.stats.num_running > 0)
        assert (await server.http.delete("/v1/requests/same")).json()["status"] == "cancelled"
        for answer in await asyncio.gather(*posted):
            assert answer.status_code == 499
            assert answer.json()["error"]["code"] == "request_cancelled"
        assert server.rig.client.in_flight == 0
        assert len(server.rig.ledger.records) == 4


async def test_the_sdk_does_not_try_a_cancelled_request_again() -> None:
    async with start_server(delay=0.005) as server:
        sdk = server.openai.with_options(max_retries=2)
        headers = {"X-Request-Id": "mine"}
        asked = sdk.completions.create(model=MODEL, prompt="x", max_tokens=400, extra_headers=headers)
        task = asyncio.create_task(asked)
        await until(lambda: server.rig.client.in_flight == 1)
        await server.http.delete("/v1/requests/mine")
        with pytest.raises(openai.APIStatusError) as raised:
            await task
        assert raised.value.status_code == 499
        assert len(server.rig.ledger.records) == 1


async def test_cancelling_what_ended_changes_nothing(server: Server) -> None:
    await server.post(COMPLETIONS, {"prompt": "x", "max_tokens": 2}, headers={"X-Request-Id": "done"})
    before = await state(server, "done")
    assert (await server.http.delete("/v1/requests/done")).json() == before
    assert before["status"] == "finished"


async def test_a_failure_and_a_client_that_left_are_told_apart() -> None:
    async with start_server(delay=0.005) as server:
        runner = server.rig.runner
        assert runner is not None
        async with server.http.stream(
            "POST",
            COMPLETIONS,
            json={"prompt": "x", "max_tokens": 400, "stream": True},
            headers={"X-Request-Id": "left"},
        ) as answer:
            await anext(answer.aiter_lines())
        await server.rig.settled()
        await until(lambda: len(server.rig.ledger.records) == 1)
        assert (await state(server, "left"))["status"] == "aborted"
        runner.row_error = lambda *_: "the logits are not finite"
        await server.post(COMPLETIONS, {"prompt": "y"}, headers={"X-Request-Id": "bad"})
        failed = await state(server, "bad")
        assert (failed["status"], failed["error_code"]) == ("failed", "engine_error")


async def test_routes_are_counted_by_template(server: Server) -> None:
    await server.http.get("/v1/requests/secret-id")
    page = (await server.http.get("/metrics")).text
    assert 'route="/v1/requests/{request_id:path}"' in page
    assert "secret-id" not in page


async def test_server_timing_of_whole_answers(server: Server) -> None:
    prompt = "a prompt of several blocks, long enough to be cached"
    for cached in (0, len(prompt) // 16 * 16):
        answer = await server.post(COMPLETIONS, {"prompt": prompt, "max_tokens": 30})
        found = re.fullmatch(
            r'queue;dur=([\d.]+), prefill;dur=([\d.]+), decode;dur=([\d.]+), cached_tokens;desc="(\d+)"',
            answer.headers["server-timing"],
        )
        assert found
        assert int(found[4]) == cached == answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        record = server.rig.ledger.records[-1]
        assert record.timings is not None
        first, finished = record.timings.first_token, record.timings.finished
        assert first is not None
        assert finished is not None
        assert float(found[3]) == pytest.approx(1000 * (finished - first), abs=0.001)


async def test_server_timing_of_a_stream_has_what_is_known_when_the_headers_leave(server: Server) -> None:
    answer = await server.post(COMPLETIONS, {"prompt": "x", "max_tokens": 30, "stream": True})
    assert re.fullmatch(
        r'queue;dur=[\d.]+, prefill;dur=[\d.]+, cached_tokens;desc="0"', answer.headers["server-timing"]
    )


async def test_server_timing_of_an_answer_that_a_stop_string_ended(server: Server) -> None:
    answer = await server.post(COMPLETIONS, {"prompt": "x", "max_tokens": 300, "stop": "wörld"})
    assert "decode;dur=" in answer.headers["server-timing"]
