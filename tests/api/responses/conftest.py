"""A server that keeps answers, and the events of a stream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from app.answers.answers import Answers
from tests.api.conftest import Server, start_server
from tests.serving.rig import MODEL


@pytest.fixture
def answers() -> Iterator[Answers]:
    made = Answers("memory")
    yield made
    made.close()


@pytest.fixture
async def keeping(answers: Answers) -> AsyncIterator[Server]:
    """A server that keeps its answers in memory."""
    async with start_server() as server:
        server.service.answers = answers
        yield server


async def ask(server: Server, status: int = 200, **body: Any) -> dict[str, Any]:
    """The whole answer, or the error."""
    answer = await server.post("/v1/responses", {"model": MODEL, "max_output_tokens": 8, **body})
    assert answer.status_code == status, answer.text
    content: dict[str, Any] = answer.json()
    return content if status == 200 else content["error"]


def read_events(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, in which each says twice what it is, is numbered, and the last of all is ``[DONE]``."""
    *blocks, last, nothing = answer.text.split("\n\n")
    assert (last, nothing) == ("data: [DONE]", "")
    events = []
    for number, block in enumerate(blocks):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        events.append(event)
    return events


async def stream(server: Server, **body: Any) -> list[dict[str, Any]]:
    """The events of a streamed answer."""
    asked = {"model": MODEL, "max_output_tokens": 8, "stream": True, **body}
    answer = await server.post("/v1/responses", asked)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return read_events(answer)
