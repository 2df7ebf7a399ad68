"""Clients that go away, at any moment, leave nothing behind."""

from __future__ import annotations

import asyncio
import json
import random

import httpx

from tests.integration.server import start_server

CLIENTS = 200
AT_ONCE = 20


def _gauge(metrics: str, name: str) -> float:
    return sum(float(line.rsplit(" ", 1)[1]) for line in metrics.splitlines() if line.startswith(f"{name}{{"))


async def _idle_blocks(http: httpx.AsyncClient) -> float:
    """KV usage once nothing runs or waits."""
    for _ in range(400):
        text = (await http.get("/metrics")).text
        if _gauge(text, "vllm:num_requests_running") == 0 == _gauge(text, "vllm:num_requests_waiting"):
            return _gauge(text, "vllm:kv_cache_usage_perc")
        await asyncio.sleep(0.05)
    raise AssertionError("requests of clients that are gone still run")


async def _leave(host: str, port: int, rng: random.Random) -> str:
    """Sends a request and hangs up: at once, before the headers, in prefill or while tokens come."""
    reader, writer = await asyncio.open_connection(host, port)
    stream = rng.random() < 0.6
    body = json.dumps(
        {
            "prompt": [rng.randrange(100, 40_000) for _ in range(rng.choice([3, 60, 400, 1200]))],
            "max_tokens": 400,
            "ignore_eos": True,
            "stream": stream,
            "n": rng.choice([1, 1, 2]),
        }
    ).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    payload = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    moment = rng.choice(["half the request", "at once", "a little later", "after some chunks"])
    writer.write(payload[: len(payload) // 2] if moment == "half the request" else payload)
    await writer.drain()
    if moment == "a little later":
        await asyncio.sleep(rng.random() * 0.5)
    elif moment == "after some chunks" and stream:
        seen = 0
        while seen < rng.randrange(1, 6) and (line := await reader.readline()):
            seen += line.startswith(b"data:")
    writer.transport.abort()
    return moment


async def _watch_queue(http: httpx.AsyncClient, most: list[float]) -> None:
    """Notes how many requests wait, at most, until cancelled."""
    while True:
        most[0] = max(most[0], _gauge((await http.get("/metrics")).text, "vllm:num_requests_waiting"))
        await asyncio.sleep(0.1)


async def test_blocks_return_to_the_baseline() -> None:
    rng = random.Random(20)
    # Few slots, so that clients also leave while they queue. The engine checks its allocator whenever it is idle.
    with start_server("--max-num-seqs", "4") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            baseline = await _idle_blocks(http)
            url = httpx.URL(server.url)
            gate = asyncio.Semaphore(AT_ONCE)

            async def one() -> str:
                async with gate:
                    return await _leave(url.host, url.port or 0, rng)

            most_waiting = [0.0]
            watcher = asyncio.create_task(_watch_queue(http, most_waiting))
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one()) for _ in range(CLIENTS)]
            watcher.cancel()
            assert len({task.result() for task in tasks}) == 4
            assert most_waiting[0] > 0
            assert await _idle_blocks(http) == baseline
            answer = await http.post("/v1/completions", json={"prompt": "Still there?", "max_tokens": 3})
            assert answer.status_code == 200
            metrics = (await http.get("/metrics")).text
            assert _gauge(metrics, "tuili_engine_restarts_total") == 0
            aborted = [line for line in metrics.splitlines() if 'finished_reason="abort"' in line]
            assert aborted
            assert float(aborted[0].rsplit(" ", 1)[1]) > 0
