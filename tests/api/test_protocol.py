"""What is refused before a request is one."""

from __future__ import annotations

import asyncio
import functools
import json
import re
import socket

import pytest
import uvicorn

from app.api import protocol
from app.api.protocol import MAX_HEAD_BYTES, MAX_PIPELINED, MAX_PIPELINED_BYTES
from app.api.service import ApiSettings
from tests.api.conftest import TIMEOUT, Server, start_server
from tests.serving.rig import until

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
        (START + b"a: ", *[b"x" * 1024] * (MAX_HEAD_BYTES // 1024 + 300)),
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


async def test_http_1_0_has_no_chunks(shared_server: Server) -> None:
    def post(path: bytes, **body: object) -> bytes:
        data = json.dumps(body).encode()
        # An old proxy that talks 1.0 to its servers may ask for the connection to stay.
        head = b"POST %s HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: %d\r\n\r\n"
        return head % (path, len(data)) + data

    answer = await _exchange(shared_server, post(b"/v1/completions", prompt="a", max_tokens=3, stream=True))
    head, _, stream = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert stream.startswith(b"data: {")
    assert stream.endswith(b"data: [DONE]\n\n")
    whole = await _exchange(shared_server, post(b"/v1/completions", prompt="a", max_tokens=3))
    head, _, body = whole.partition(b"\r\n\r\n")
    assert b"content-length: %d\r\n" % len(body) in head
    assert json.loads(body)["usage"]["completion_tokens"] == 3
    headed = await _exchange(shared_server, b"HEAD /livez HTTP/1.0\r\n\r\n")
    assert headed.startswith(b"HTTP/1.1 200 ")
    assert headed.endswith(b"\r\n\r\n")


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


def _post(body: object, path: str = "/v1/completions", headers: str = "") -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {len(content)}\r\n\r\n"
    return head.encode() + content


def _statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+) ", answer)]


async def test_some_pipelined_requests_are_answered_in_order(shared_server: Server) -> None:
    missing = b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n"
    get = START + b"\r\n"
    last = START + b"connection: close\r\n\r\n"
    whole = _post({"prompt": "a", "max_tokens": 3}) + (get + missing) * (MAX_PIPELINED // 2 - 1) + last
    for pieces in ((whole,), [whole[at : at + 50] for at in range(0, len(whole), 50)], (get, whole)):
        statuses = _statuses(await _exchange(shared_server, *pieces))
        assert statuses[-MAX_PIPELINED:] == [200] + [200, 404] * (MAX_PIPELINED // 2 - 1) + [200]


async def test_the_connection_ends_after_more_than_some(shared_server: Server) -> None:
    answer = await _exchange(shared_server, (START + b"\r\n") * 5000)
    assert _statuses(answer) == [200] * (MAX_PIPELINED + 1)
    assert answer.count(b"connection: close") == 1


async def test_bodies_of_waiting_requests_stay_with_the_client() -> None:
    """They are answered all the same, once the requests before them are."""
    async with start_server(delay=0.005) as server:
        large = _post({"prompt": "a", "max_tokens": 1, "user": "x" * 4 * MAX_PIPELINED_BYTES})
        whole = _post({"prompt": "a", "max_tokens": 30}) + large * 3 + START + b"connection: close\r\n\r\n"
        assert _statuses(await _exchange(server, whole)) == [200] * 5


@pytest.mark.parametrize("more", [START + b"\r\n", (START + b"\r\n") * 100, b"GARBAGE\r\n\r\n"])
async def test_a_client_that_leaves_with_requests_waiting_ends_the_one_under_way(more: bytes) -> None:
    async with start_server(delay=0.005) as server:
        _, writer = await asyncio.open_connection(*server.address)
        writer.write(_post({"prompt": "a", "max_tokens": 400}))
        await until(lambda: server.rig.client.in_flight == 1)
        writer.write(more)
        await asyncio.sleep(0.01)
        writer.transport.abort()
        await until(lambda: len(server.rig.ledger.records) == 1)
        assert server.rig.ledger.records[0].generated_tokens < 400
        assert server.rig.client.in_flight == 0


async def test_what_is_not_http_does_not_spoil_the_answers_before_it(shared_server: Server) -> None:
    """What is bad is refused only where it arrives after their end: an answer never comes before its turn."""
    for bad, refusal in ((b"GARBAGE\r\n\r\n", 400), (START + b"a: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n", 431)):
        answer = await _exchange(shared_server, _post({"prompt": "a", "max_tokens": 50}), START + b"\r\n" + bad)
        assert _statuses(answer) in ([200, 200], [200, 200, refusal])
        whole = answer.split(b"HTTP/1.1 200 OK\r\n")[1]
        assert json.loads(whole.split(b"\r\n\r\n")[1])["usage"]["completion_tokens"] == 50


@pytest.mark.parametrize(
    "piece",
    [b"G", START, b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{"],
    ids=["request line", "head", "body"],
)
async def test_a_request_that_does_not_go_on_is_408(monkeypatch: pytest.MonkeyPatch, piece: bytes) -> None:
    monkeypatch.setattr(protocol, "ARRIVAL_TIMEOUT", 0.05)
    async with start_server() as server:
        answer = await _exchange(server, START + b"\r\n", piece)
        assert _statuses(answer) == [200, 408]
        assert json.loads(answer.split(b"\r\n\r\n")[-1])["error"]["code"] == "request_timeout"


async def test_an_answer_takes_longer_than_its_request_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "ARRIVAL_TIMEOUT", 0.05)
    async with start_server(delay=0.005) as server:
        post = _post({"prompt": "a", "max_tokens": 60}, headers="connection: close\r\n")
        assert _statuses(await _exchange(server, post[:20], post[20:])) == [200]


async def test_a_connection_without_a_request_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn, "Config", functools.partial(uvicorn.Config, timeout_keep_alive=0))
    async with start_server() as server:
        assert await _exchange(server) == b""


async def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SEND_TIMEOUT", 0.05)
    async with start_server() as server:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(server.address)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            # Names of control tokens: an answer longer than what sockets hold.
            await loop.sock_sendall(sock, _post({"tokens": [258] * 1_000_000}, "/detokenize"))
            async with asyncio.timeout(TIMEOUT):
                received = len(await loop.sock_recv(sock, 2**20))
                await asyncio.sleep(0.5)
                while data := await loop.sock_recv(sock, 2**20):
                    received += len(data)
        assert 0 < received < 1_000_000 * len("<|im_start|>")


async def test_an_idle_connection_makes_room_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 2)
    async with start_server(delay=0.005) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        running = asyncio.create_task(
            _exchange(server, _post({"prompt": "a", "max_tokens": 60}, headers="connection: close\r\n"))
        )
        await until(lambda: server.rig.client.in_flight == 1)
        last = START + b"connection: close\r\n\r\n"
        assert _statuses(await _exchange(server, last)) == [200]
        assert await reader.read() == b""  # the idle one
        writer.close()
        assert _statuses(await running) == [200]


async def test_probes_get_through_when_no_connection_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(protocol, "PROBE_CONNECTIONS", 2)
    async with start_server(delay=0.005) as server:
        post = _post({"prompt": "a", "max_tokens": 100}, headers="connection: close\r\n")
        running = [asyncio.create_task(_exchange(server, post)) for _ in range(2)]
        await until(lambda: server.rig.client.in_flight == 2)
        assert _statuses(await _exchange(server, START + b"\r\n")) == [200]
        refused = await _exchange(server, post)
        assert _statuses(refused) == [429]
        assert json.loads(refused.split(b"\r\n\r\n")[1])["error"]["code"] == "overloaded"
        slow = [await asyncio.open_connection(*server.address) for _ in range(2)]
        for _, writer in slow:
            writer.write(b"G")
        await asyncio.sleep(0.05)
        assert await _exchange(server) == b""  # more than even those that are kept for probes
        for _, writer in slow:
            writer.close()
        assert [_statuses(each) for each in await asyncio.gather(*running)] == [[200], [200]]
