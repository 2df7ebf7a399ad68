"""What is refused before a request is one."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from app.api.protocol import MAX_HEAD_BYTES
from app.api.service import ApiSettings
from tests.api.conftest import TIMEOUT, Server, start_server

START = b"GET /livez HTTP/1.1\r\nhost: x\r\n"
FILLING = MAX_HEAD_BYTES - 1000


async def _exchange(server: Server, *pieces: bytes) -> bytes:
    """All that comes back until the server closes the connection."""
    reader, writer = await asyncio.open_connection(*server.address)
    try:
        async with asyncio.timeout(TIMEOUT):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.001)  # so that the server reads it as a piece
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    "pieces",
    [
        (START + b"a: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",),
        (START + b"a: xxxxxxx\r\n" * (MAX_HEAD_BYTES // 8) + b"\r\n",),
        (START + b"a: ", *[b"x" * 1024] * (MAX_HEAD_BYTES // 1024 + 1)),
        (b"GET /livez?" + b"x" * 40_000, b"x" * 40_000 + b" HTTP/1.1\r\n\r\n"),
    ],
    ids=["one header", "many headers", "a header without end", "request line"],
)
async def test_a_head_without_end_is_431(shared_server: Server, pieces: tuple[bytes, ...]) -> None:
    answer = await _exchange(shared_server, *pieces)
    head, body = answer.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    error = json.loads(body)["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "headers_too_large")


async def test_large_heads_and_bodies_pass(shared_server: Server) -> None:
    """Each request is counted alone, its body not at all, however the bytes are cut."""
    filled = START + b"a: " + b"x" * FILLING + b"\r\n"
    body = json.dumps({"prompt": "a", "max_tokens": 1, "user": "x" * 4 * MAX_HEAD_BYTES}).encode()
    post = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    whole = filled + b"\r\n" + post + filled + b"\r\n" + post + filled + b"connection: close\r\n\r\n"
    for size in (len(whole), 50_000):
        answer = await _exchange(shared_server, *(whole[at : at + size] for at in range(0, len(whole), size)))
        assert answer.count(b"HTTP/1.1 200 ") == 5


async def test_a_large_body_is_sent_to_its_end_for_a_413() -> None:
    """A connection closed on unread bytes is reset, and the answer with it."""
    async with start_server(ApiSettings(max_body_bytes=1000)) as server:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 4000000\r\n\r\n"
        last = START + b"connection: close\r\n\r\n"
        answer = await _exchange(server, head, *[b"x" * 1_000_000] * 4, last)
    assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"413", b"200"]


async def test_what_is_not_http_is_400(shared_server: Server) -> None:
    assert (await _exchange(shared_server, b"GARBAGE\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
