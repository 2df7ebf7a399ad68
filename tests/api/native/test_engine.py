"""What the engine does, once and live: owners without names, bounds, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.api.native import engine
from app.api.service import ApiSettings
from app.keys import parse_keys
from tests.api.conftest import Server, start_server, start_server_without_engine
from tests.serving.rig import MODEL, until

ALICE, BOB, ROOT, METRICS = ("alice-key-0123456789", "bob-key-0123456789", "root-key-0123456789", "metrics-0123456789")
KEYS = parse_keys([f"a:infer:{ALICE}", f"b:infer:{BOB}", f"r:admin:{ROOT}", f"m:metrics:{METRICS}"])
SECRET = "nobody-may-see-this"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def view(server: Server, **headers: str) -> dict[str, Any]:
    answer = await server.http.get("/v1/engine", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    content: dict[str, Any] = answer.json()
    return content


@contextlib.asynccontextmanager
async def generating(server: Server, request_id: str, prompt: str, **headers: str) -> AsyncIterator[None]:
    """A request that goes on for as long as the block runs."""
    body = {"prompt": prompt, "max_tokens": 400, "ignore_eos": True, "n": 2}
    sent = {"X-Request-Id": request_id, **headers}
    before = server.rig.client.stats.num_running
    task = asyncio.create_task(server.post("/v1/completions", body, headers=sent))
    await until(lambda: server.rig.client.stats.num_running == before + 2)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_an_idle_engine(shared_server: Server) -> None:
    seen = await view(shared_server)
    assert (seen["model"], seen["state"]) == (MODEL, "ready")
    assert (seen["running"], seen["waiting"], seen["requests"], seen["others"]) == (0, 0, [], None)
    assert seen["kv"]["held"] == 0
    assert seen["kv"]["total"] == 64
    assert seen["info"]["max_model_len"] == 512
    unknown = await shared_server.http.get("/v1/engine", params={"model": "no"})
    assert unknown.json()["error"]["code"] == "model_not_found"


async def test_blocks_are_told_by_their_owners() -> None:
    async with start_server(delay=0.01) as server, generating(server, SECRET, "x" * 70):
        await until(lambda: server.rig.client.stats.generation_tokens_total > 4)
        seen = await view(server)
        assert (seen["running"], seen["waiting"]) == (2, 0)
        (request,) = seen["requests"]
        assert (request["number"], request["status"], request["yours"]) == (1, "running", False)
        assert request["prompt_tokens"] == 70
        assert request["generated_tokens"] > 4
        # Two sequences over one prompt of four whole blocks, which both hold.
        assert request["shared_blocks"] == 8
        assert request["blocks"] >= 10
        assert seen["kv"]["held"] == request["blocks"] - 4
        assert SECRET not in json.dumps(seen)
        totals = seen["totals"]
        assert totals["steps"] > 0
        assert totals["prefix_query_tokens"] == 140


async def test_what_ended_stays_in_the_prefix_cache() -> None:
    async with start_server() as server:
        await server.post("/v1/completions", {"prompt": "x" * 64, "max_tokens": 1})
        await server.rig.settled()
        seen = await view(server)
        assert seen["requests"] == []
        assert (seen["kv"]["held"], seen["kv"]["cached"]) == (0, 4)


async def test_keys_see_their_own_requests_and_the_sum_of_others() -> None:
    async with (
        start_server(ApiSettings(api_keys=KEYS), delay=0.01) as server,
        generating(server, "of-alice", "x" * 20, **bearer(ALICE)),
        generating(server, "of-bob", "y" * 40, **bearer(BOB)),
    ):
        alice, bob, root = [await view(server, **bearer(key)) for key in (ALICE, BOB, ROOT)]
        for seen, number, prompt_tokens in ((alice, 1, 20), (bob, 2, 40)):
            assert [(each["number"], each["yours"]) for each in seen["requests"]] == [(number, True)]
            assert seen["requests"][0]["prompt_tokens"] == prompt_tokens
            assert seen["others"]["requests"] == 1
            assert seen["others"]["blocks"] > 0
            assert "of-" not in json.dumps(seen)
        assert [(each["number"], each["yours"]) for each in root["requests"]] == [(1, False), (2, False)]
        assert root["others"] is None
        for path in ("/v1/engine", "/v1/engine/live"):
            assert (await server.http.get(path)).status_code == 401
            assert (await server.http.get(path, headers=bearer(METRICS))).status_code == 403


async def test_views_come_until_the_client_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "INTERVAL", 0.01)
    async with start_server() as server:
        async with server.http.stream("GET", "/v1/engine/live") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            views = []
            async for line in stream.aiter_lines():
                if line:
                    views.append(json.loads(line.removeprefix("data: ")))
                if len(views) == 3:
                    break
        assert [each["model"] for each in views] == [MODEL] * 3
        assert sorted(each["time"] for each in views) == [each["time"] for each in views]


async def test_watchers_are_bounded_and_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MAX_WATCHERS", 1)
    async with start_server() as server:
        async with server.http.stream("GET", "/v1/engine/live") as first:
            await anext(first.aiter_lines())
            refused = await server.http.get("/v1/engine/live")
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "10"
        for _ in range(1000):  # the server hears a moment later that the first one has left
            async with server.http.stream("GET", "/v1/engine/live") as again:
                if again.status_code == httpx.codes.OK:
                    return
            await asyncio.sleep(0.002)
        raise AssertionError("the first watcher still counts")


async def test_a_live_view_ends_when_the_server_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "INTERVAL", 0.01)
    async with start_server() as server, server.http.stream("GET", "/v1/engine/live") as stream:
        lines = stream.aiter_lines()
        await anext(lines)
        server.service.draining = True
        async for _ in lines:
            pass


async def test_a_live_view_ends_with_the_time_of_a_request() -> None:
    async with start_server(ApiSettings(default_timeout=0.05)) as server:
        answer = await server.http.get("/v1/engine/live")
    assert answer.text.count("data: ") == 1


async def test_before_the_engine_is_up() -> None:
    async with start_server_without_engine() as server:
        seen = await view(server)
        assert (seen["state"], seen["info"], seen["kv"]["total"]) == ("loading", None, 0)
