"""Keep-alive comments and the moment at which the headers leave."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message

from app.api.service import ApiSettings
from app.api.sse import COMMENT, EventStream
from tests.api.conftest import start_server


class Sent:
    """An ASGI ``send`` that keeps what it is given."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def __call__(self, message: Message) -> None:
        """Keeps it."""
        self.messages.append(message)

    @property
    def bodies(self) -> list[bytes]:
        """Of the messages after the first."""
        return [message["body"] for message in self.messages[1:]]


async def test_the_response_begins_with_the_first_event() -> None:
    sent = Sent()
    events = EventStream(sent, {"x-extra": "1"})
    assert not events.started
    await events.send(b"data: {}\n\n")
    await events.end()
    start = sent.messages[0]
    assert start["status"] == 200
    assert (b"content-type", b"text/event-stream; charset=utf-8") in start["headers"]
    assert (b"x-extra", b"1") in start["headers"]
    assert sent.bodies == [b"data: {}\n\n", b""]
    assert [message["more_body"] for message in sent.messages[1:]] == [True, False]


async def test_silence_is_filled_and_events_are_not() -> None:
    sent = Sent()
    events = EventStream(sent, {})
    async with events.kept_alive(0.02):
        while sent.bodies.count(COMMENT) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        await events.send(b"data: 1\n\n")
    comments = sent.bodies.count(COMMENT)
    await asyncio.sleep(0.05)
    assert sent.bodies.count(COMMENT) == comments  # none after the block
    assert sent.bodies[-1] == b"data: 1\n\n"


async def test_a_comment_that_could_not_be_sent_does_not_begin_the_response() -> None:
    sent, waits, reads = Sent(), asyncio.Event(), asyncio.Event()

    async def send(message: Message) -> None:
        waits.set()
        await reads.wait()
        await sent(message)

    events = EventStream(send, {})
    async with events.kept_alive(0.01):
        await waits.wait()
    reads.set()
    await events.end()
    assert [message["type"] for message in sent.messages] == ["http.response.start", "http.response.body"]


async def test_no_interval_no_comments() -> None:
    sent = Sent()
    async with EventStream(sent, {}).kept_alive(0):
        await asyncio.sleep(0.02)
    assert sent.messages == []


async def test_an_error_in_the_block_is_not_swallowed() -> None:
    with pytest.raises(RuntimeError):
        async with EventStream(Sent(), {}).kept_alive(10):
            raise RuntimeError


async def test_a_slow_prefill_gets_comments_and_then_its_answer() -> None:
    async with start_server(ApiSettings(keepalive_interval=0.05), delay=0.3) as server:
        body = {"prompt": "x", "max_tokens": 1, "stream": True}
        async with server.http.stream("POST", "/v1/completions", json=body) as answer:
            assert answer.status_code == 200
            lines = [line async for line in answer.aiter_lines()]
    assert lines[0] == ": keep-alive"
    data = [line for line in lines if line.startswith("data: ")]
    assert len(data) == 2
    assert data[-1] == "data: [DONE]"
    assert lines.index(data[0]) > 1


async def test_a_failure_after_comments_is_an_event() -> None:
    async with start_server(ApiSettings(keepalive_interval=0.02), delay=0.2) as server:
        assert server.rig.runner is not None
        server.rig.runner.row_error = lambda *_: "the logits are not finite"
        body = {"prompt": "x", "max_tokens": 1, "stream": True}
        answer = await server.post("/v1/completions", body)
    assert answer.status_code == 200
    data = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    assert len(data) == 1
    assert data[0].startswith('data: {"error":')
