"""Clients that go away at any moment leave nothing behind."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from app.contract.request import FinishReason
from tests.api.conftest import Server, start_server
from tests.serving.rig import until


async def _send(server: Server, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(*server.address)
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    await writer.drain()
    return reader, writer


async def _settled(server: Server) -> None:
    await until(lambda: server.rig.client.in_flight == 0)
    await server.rig.settled()


def _reasons(server: Server) -> list[FinishReason]:
    return [reason for record in server.rig.ledger.records for reason in record.finish_reasons]


@pytest.mark.parametrize("body", [{"stream": True}, {"stream": False}, {"stream": True, "n": 3, "prompt": ["a", "b"]}])
async def test_in_mid_answer(body: dict[str, Any]) -> None:
    async with start_server(delay=0.005) as server:
        reader, writer = await _send(server, {"prompt": "x", "max_tokens": 400, **body})
        await until(lambda: server.rig.client.stats.generation_tokens_total > 3)
        if body["stream"]:
            assert b"200" in await reader.readline()
        assert server.rig.client.stats.blocks_used > 0
        writer.transport.abort()
        await _settled(server)
        assert set(_reasons(server)) == {FinishReason.ABORT}
        assert server.rig.client.stats.generation_tokens_total < 400


async def test_while_queued() -> None:
    async with start_server(delay=0.005, max_num_seqs=1) as server:
        first = asyncio.create_task(server.post("/v1/completions", {"prompt": "x", "max_tokens": 100}))
        await until(lambda: server.rig.client.stats.num_running == 1)
        _, writer = await _send(server, {"prompt": "y", "max_tokens": 400})
        await until(lambda: server.rig.client.stats.num_waiting == 1)
        writer.transport.abort()
        await until(lambda: server.rig.client.in_flight == 1)
        assert (await first).status_code == 200
        await _settled(server)
        assert sorted(_reasons(server)) == [FinishReason.ABORT, FinishReason.LENGTH]


async def test_before_the_headers_in_a_silent_prefill() -> None:
    async with start_server(delay=0.05) as server:
        _, writer = await _send(server, {"prompt": "x", "max_tokens": 400, "stream": True})
        await until(lambda: server.rig.client.in_flight == 1)
        writer.transport.abort()
        await _settled(server)
        assert _reasons(server) == [FinishReason.ABORT]


async def test_in_mid_body() -> None:
    async with start_server() as server:
        _, writer = await asyncio.open_connection(*server.address)
        writer.write(b'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"prompt"')
        await writer.drain()
        writer.transport.abort()
        assert (await server.post("/v1/completions", {"prompt": "x", "max_tokens": 1})).status_code == 200
        assert _reasons(server) == [FinishReason.LENGTH]

    def left(page: str) -> bool:
        return 'tuili_http_requests_total{method="POST",route="/v1/completions",status="499"} 1.0' in page

    assert left(server.service.metrics.render()[0].decode())


async def test_the_connection_is_kept_when_all_is_well(server: Server) -> None:
    reader, writer = await _send(server, {"prompt": "x", "max_tokens": 3, "stream": True})
    assert b"[DONE]" in await reader.readuntil(b"\r\n0\r\n\r\n")
    writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    writer.close()
