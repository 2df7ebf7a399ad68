"""That no client makes the server hold or do more than bounded amounts: others are served, memory stays."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.body import MAX_CONTAINERS
from app.api.service import ApiSettings
from tests.api.conftest import NO_TLS, TIMEOUT, Server, start_server

MIB = 1 << 20
MAX_GROWTH = 300 * MIB
GET = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process in /proc")


@dataclass
class ServerProcess:
    """A server whose memory can be looked at."""

    url: httpx.URL
    pid: int

    def memory(self, name: str) -> int:
        """A value of the process's status, in bytes."""
        found = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE)
        assert found
        return 1024 * int(found[1])

    def forget_peak(self) -> None:
        """Lets the peak start anew."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    @contextlib.asynccontextmanager
    async def serves_others_in_bounds(self) -> AsyncIterator[None]:
        """Asks it again and again meanwhile, then looks at what it took at the most."""
        self.forget_peak()
        before = self.memory("VmRSS")
        done = asyncio.Event()

        async def ask() -> None:
            async with httpx.AsyncClient(base_url=self.url, timeout=TIMEOUT, verify=NO_TLS) as http:
                while not done.is_set():
                    assert (await http.get("/livez")).status_code == 200
                    await asyncio.sleep(0.01)
                assert (await http.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 1})).status_code == 200

        async with asyncio.TaskGroup() as group:
            group.create_task(ask())
            try:
                yield
            finally:
                done.set()
        assert self.memory("VmHWM") - before < MAX_GROWTH


@pytest.fixture(scope="module")
def process() -> Iterator[ServerProcess]:
    with subprocess.Popen([sys.executable, "-m", "tests.api.serve"], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        yield ServerProcess(httpx.URL(started.stdout.readline().strip()), started.pid)
        started.kill()


@needs_proc
@pytest.mark.parametrize("reads", [True, False])
async def test_pipelined_requests_without_end(process: ServerProcess, reads: bool) -> None:
    async def flood() -> int:
        reader, writer = await asyncio.open_connection(process.url.host, process.url.port, limit=MIB)
        try:
            if not reads:
                writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(GET * (12 * MIB // len(GET)))
            answers = 0
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(TIMEOUT if reads else 1):
                    while data := await reader.read(MIB):
                        answers += data.count(b"HTTP/1.1 200 ")
        except TimeoutError:
            assert not reads
        finally:
            writer.transport.abort()
        return answers

    async with process.serves_others_in_bounds():
        answered = await asyncio.gather(*[flood() for _ in range(4)])
    assert all(0 < answers < 1000 for answers in answered) or not reads


def _list(item: str, count: int) -> str:
    return f"[{','.join([item] * count)}]"


BODIES: dict[str, tuple[str, Callable[[], str]]] = {
    "text": (COMPLETIONS, lambda: json.dumps({"prompt": "a " * (7 * MIB)})),
    "text without spaces": (COMPLETIONS, lambda: json.dumps({"prompt": "a" * (15 * MIB)})),
    "texts": (COMPLETIONS, lambda: json.dumps({"prompt": ["a " * (MIB // 2)] * 14})),
    "conversation": (CHAT, lambda: json.dumps({"messages": [{"role": "user", "content": "a " * (7 * MIB)}]})),
    "beginnings of control tokens": (
        CHAT,
        lambda: json.dumps({"messages": [{"role": "user", "content": "<" * (15 * MIB)}]}),
    ),
    "inputs": ("/generate", lambda: json.dumps({"inputs": "a " * (7 * MIB)})),
    "text to tokenise": ("/tokenize", lambda: json.dumps({"prompt": "a " * (7 * MIB)})),
    "ids": (COMPLETIONS, lambda: f'{{"prompt":{_list("5", 7 * MIB)}}}'),
    "ids that are none": (COMPLETIONS, lambda: f'{{"prompt":{_list("true", 3 * MIB)}}}'),
    "lists of ids": (COMPLETIONS, lambda: f'{{"prompt":{_list(_list("5", 60_000), 100)}}}'),
    "empty lists": (COMPLETIONS, lambda: f'{{"prompt":{_list("[]", 5 * MIB)}}}'),
    "as many empty lists as pass": (COMPLETIONS, lambda: f'{{"prompt":{_list("[]", MAX_CONTAINERS - 2)}}}'),
    "empty texts": (COMPLETIONS, lambda: f'{{"prompt":{_list(chr(34) * 2, 5 * MIB)}}}'),
    "texts of quotes": (COMPLETIONS, lambda: json.dumps({"prompt": ['"\\' * 8] * (MIB // 4)})),
    "unknown fields": (
        COMPLETIONS,
        lambda: json.dumps({"prompt": "a", "max_tokens": 1} | {str(i): 1 for i in range(1_000_000)}),
    ),
    "nested": (COMPLETIONS, lambda: '{"prompt":' + "[" * 7 * MIB + "]" * 7 * MIB + "}"),
    "messages": (CHAT, lambda: json.dumps({"messages": [{"role": "user", "content": "a"}] * 300_000})),
    "parts": (
        CHAT,
        lambda: json.dumps({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 20_000}]}),
    ),
    "biases": (
        COMPLETIONS,
        lambda: json.dumps({"prompt": "a", "logit_bias": dict.fromkeys(map(str, range(10**6)), 1)}),
    ),
    "bad biases": (
        COMPLETIONS,
        lambda: json.dumps({"prompt": "a", "logit_bias": dict.fromkeys(map(str, range(60_000)))}),
    ),
    "stop strings": (COMPLETIONS, lambda: json.dumps({"prompt": "a", "stop": ["a"] * (3 * MIB)})),
    "flat stop strings": ("/generate", lambda: json.dumps({"inputs": "a", "parameters": {"stop": [1] * (3 * MIB)}})),
    "tools": (CHAT, lambda: json.dumps({"messages": [{"role": "user", "content": "a"}], "tools": [{}] * (3 * MIB)})),
    "ids to text": ("/detokenize", lambda: f'{{"tokens":{_list("100", 3 * MIB)}}}'),
}


@needs_proc
@pytest.mark.parametrize("name", BODIES)
async def test_absurd_bodies(process: ServerProcess, name: str) -> None:
    path, make = BODIES[name]
    content = make().encode()
    async with (
        process.serves_others_in_bounds(),
        httpx.AsyncClient(base_url=process.url, timeout=TIMEOUT, verify=NO_TLS) as http,
    ):
        answer = await http.post(path, content=content)
    error = answer.json()
    if path == "/generate":
        assert (answer.status_code, error["error_type"]) == (422, "validation")
    else:
        assert answer.status_code == 400
        assert error["error"]["code"] in ("invalid_value", "invalid_type", "context_length_exceeded", "invalid_json")
    assert len(answer.content) < 1000


@needs_proc
async def test_only_the_end_of_long_inputs_is_tokenised_where_only_that_counts(process: ServerProcess) -> None:
    async with (
        process.serves_others_in_bounds(),
        httpx.AsyncClient(base_url=process.url, timeout=TIMEOUT, verify=NO_TLS) as http,
    ):
        parameters = {"truncate": 5, "max_new_tokens": 1, "decoder_input_details": True}
        answer = await http.post("/generate", json={"inputs": "a " * (7 * MIB) + "the end", "parameters": parameters})
    assert answer.status_code == 200, answer.text
    assert "".join(token["text"] for token in answer.json()["details"]["prefill"]) == "e end"


async def test_structure_inside_texts_does_not_count(shared_server: Server) -> None:
    """Many brackets, commas and quotes are no fault of a text."""
    for filling in ('["\\', "[{", '\\\\"', ","):
        body = {"prompt": "a", "max_tokens": 1, "user": filling * (4 * MIB // len(filling) + 1)}
        answer = await shared_server.post(COMPLETIONS, body)
        assert answer.status_code == 200, answer.text


async def test_the_document_tells_the_bounds_of_all_lists(shared_server: Server) -> None:
    document = (await shared_server.http.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    unbounded = []

    def walk(where: str, schema: Any) -> None:
        if isinstance(schema, list):
            for part in schema:
                walk(where, part)
        if not isinstance(schema, dict):
            return
        if schema.get("type") == "array" and "maxItems" not in schema:
            unbounded.append(where)
        if schema.get("type") == "object" and "properties" not in schema and "maxProperties" not in schema:
            unbounded.append(where)
        for name, part in schema.items():
            if name == "$ref":
                walk(part, schemas[part.rpartition("/")[2]])
            else:
                walk(f"{where}.{name}", part)

    for path, operations in document["paths"].items():
        for operation in operations.values():
            walk(path, operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema"))
    assert unbounded == []


async def test_bodies_are_bounded_together() -> None:
    """Large ones: those of usual size pass beside them."""
    settings = ApiSettings(max_body_bytes=MIB, max_body_bytes_together=3 * MIB // 2)
    content = json.dumps({"prompt": "a", "max_tokens": 1, "user": "x" * (MIB - 100)}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(content)}\r\n\r\n"
    async with start_server(settings) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(head.encode() + content[:-1])
        await writer.drain()

        async def refused() -> bool:
            answer = await server.http.post(COMPLETIONS, content=content)
            if answer.status_code == 200:
                return False
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1
            return True

        async with asyncio.timeout(TIMEOUT):
            while not await refused():
                pass  # the first one has not come so far
            assert (await server.post(COMPLETIONS, {"prompt": "a", "max_tokens": 1})).status_code == 200
            writer.write(content[-1:])
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
            assert not await refused()
        writer.close()
