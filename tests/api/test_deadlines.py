"""A request's clock runs from its head on: waiting for its body, and for the tokenizer, counts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.api.service import ApiSettings
from app.text.long_work import CAPACITY
from app.text.tokenizer import THREAD_THRESHOLD
from tests.api.conftest import TIMEOUT, Server, start_server
from tests.serving.rig import until

LONG = "x" * THREAD_THRESHOLD
CASES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": LONG, "max_tokens": 4}),
    ("/v1/completions", {"prompt": LONG, "echo": True, "logprobs": 0, "max_tokens": 1}),
    ("/v1/completions", {"prompt": [97] * THREAD_THRESHOLD, "echo": True, "max_tokens": 1}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}], "max_tokens": 4}),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": LONG}]}], "max_tokens": 4},
    ),
    ("/generate", {"inputs": LONG, "parameters": {"max_new_tokens": 4}}),
    ("/generate", {"inputs": LONG, "parameters": {"truncate": 5, "max_new_tokens": 4}}),
    ("/tokenize", {"prompt": LONG}),
    ("/detokenize", {"tokens": [97] * THREAD_THRESHOLD}),
]


def check(path: str, status: int, body: Any) -> None:
    """It is a deadline's answer, in the route's shape."""
    if path == "/generate":
        assert (status, body["error_type"]) == (424, "generation")
    else:
        assert (status, body["error"]["code"]) == (504, "deadline_exceeded")


@contextlib.asynccontextmanager
async def busy(server: Server) -> AsyncIterator[None]:
    """All that may be tokenised at once is."""
    done, begun = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert done.wait(TIMEOUT)

    task = asyncio.create_task(server.rig.generator.tokenizer.long_work.run(CAPACITY, work))
    try:
        await until(begun.is_set)
        yield
    finally:
        done.set()
        await task


@pytest.mark.parametrize(("path", "body"), CASES)
async def test_waiting_for_the_tokenizer_counts(path: str, body: dict[str, Any]) -> None:
    settings = ApiSettings(default_timeout=0.1)
    async with start_server(settings, max_model_len=8192, num_blocks=600) as server:
        async with busy(server):
            answer = await server.post(path, body)
            check(path, answer.status_code, answer.json())
        assert not server.rig.ledger.records  # the engine never saw it
        if "tokenize" not in path:
            refused = "tuili_requests_refused_total"
            assert server.rig.sample(refused, endpoint=path, reason="deadline_exceeded") == 1
        assert (await server.post("/v1/completions", {"prompt": "a", "max_tokens": 1})).status_code == 200


async def test_waiting_for_the_body_counts() -> None:
    async with start_server() as server:
        for path, body in (("/v1/completions", {"prompt": "a"}), ("/generate", {"inputs": "a"})):
            content = json.dumps({**body, "timeout": 0.05}).encode()
            reader, writer = await asyncio.open_connection(*server.address)
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(content)}\r\n\r\n"
            writer.write(head.encode() + content[:5])
            await asyncio.sleep(0.2)
            writer.write(content[5:])
            async with asyncio.timeout(TIMEOUT):
                answer = await reader.read()
            writer.close()
            check(path, int(answer[9:12]), json.loads(answer.partition(b"\r\n\r\n")[2]))
        assert not server.rig.ledger.records


async def test_long_prompts_are_served_in_turn() -> None:
    async with start_server(max_model_len=8192, num_blocks=4096) as server:
        async with busy(server):
            posted = [asyncio.create_task(server.post(path, body)) for path, body in CASES]
            await asyncio.sleep(0.05)
            assert (await server.post("/v1/completions", {"prompt": "a", "max_tokens": 1})).status_code == 200
            assert not any(task.done() for task in posted)
        assert [answer.status_code for answer in await asyncio.gather(*posted)] == [200] * len(CASES)
