"""Servers that are not ours: what they send is scripted, the HTTP is real."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from app.bench.client import RequestResult
from app.bench.prompts import Prompt
from tests.bench.conftest import client

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEADER = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def event(**content: object) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def delta(finish_reason: str | None = None, **fields: object) -> bytes:
    return event(choices=[{"index": 0, "delta": fields, "finish_reason": finish_reason}])


@contextlib.asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[str]:
    answering: list[asyncio.Task[None]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await script(reader, writer)
            writer.close()
            await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.append(asyncio.create_task(answer(reader, writer)))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}"
        await asyncio.gather(*answering)


async def ask(script: Script, *, seconds: float = 20.0) -> RequestResult:
    async with scripted(script) as url, client(url, endpoint="chat", timeout=seconds) as sender:
        return await sender.send(0, Prompt("Hi", 4), 0.0, None)


def says(*events: bytes) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEADER + b"".join(events))
        await writer.drain()

    return script


async def test_a_role_is_no_first_token() -> None:
    text_sent = 0.0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal text_sent
        writer.write(HEADER + delta(role="assistant", content=""))
        await writer.drain()
        await asyncio.sleep(0.02)
        text_sent = time.perf_counter()
        writer.write(delta(content="a") + delta(content="b") + delta("stop") + b"data: [DONE]\n\n")
        await writer.drain()

    result = await ask(script)
    assert result.error is None
    assert result.ttft is not None
    assert result.started + result.ttft >= text_sent
    assert (result.output_chunks, len(result.itl)) == (2, 1)


async def test_usage_beats_the_number_of_chunks() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
    result = await ask(says(delta(content="abc"), delta("stop"), event(choices=[], usage=usage), b"data: [DONE]\n\n"))
    assert (result.input_tokens, result.output_tokens, result.cached_tokens) == (9, 5, 4)
    assert (result.output_chunks, result.has_usage) == (1, True)


async def test_without_usage_chunks_stand_in_and_it_is_told() -> None:
    result = await ask(says(delta(content="a"), delta(content="b"), delta("stop")))
    assert (result.error, result.output_tokens, result.has_usage) == (None, 2, False)


async def test_an_answer_without_text_has_no_first_token() -> None:
    result = await ask(says(delta("stop"), b"data: [DONE]\n\n"))
    assert (result.error, result.ttft, result.tpot, result.itl) == (None, None, None, [])


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        (says(delta(content="a"), event(error={"message": "engine\ndied", "code": 1})), "stream_error", "engine died"),
        (says(delta(content="a")), "incomplete", "middle"),
        (says(b"data: {nonsense\n\n"), "bad_response", "JSON"),
        (says(), "incomplete", "middle"),
    ],
)
async def test_streams_that_fail(script: Script, kind: str, message: str) -> None:
    result = await ask(script)
    assert result.error == kind
    assert message in (result.message or "")
    assert result.e2el > 0


async def test_a_connection_that_is_cut() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + delta(content="a"))
        await writer.drain()

    assert (await ask(script)).error == "disconnected"


async def test_a_request_has_its_time() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEADER + delta(content="a"))
        await writer.drain()
        await reader.read()  # until the client has gone

    result = await ask(script, seconds=0.05)
    assert result.error == "timeout"


async def test_statuses_are_kinds() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = b'{"error": {"message": "try later", "type": "overloaded_error"}}'
        writer.write(b"HTTP/1.1 503 X\r\nRetry-After: 7\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()

    result = await ask(script)
    assert (result.error, result.message, result.retry_after) == ("http_503", "try later", 7.0)


async def test_nobody_there() -> None:
    async with scripted(says()) as url:
        pass
    async with client(url) as sender:
        result = await sender.send(0, Prompt("Hi", 4), 0.0, None)
    assert result.error == "connect"
