"""A protocol of the tests' own: it reads and writes, and the exchange does the rest."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Sequence
from typing import Annotated

import msgspec
import pytest
from fastapi import APIRouter
from pydantic import Field

from app.api.endpoint import AnswerHead, AnswerWriter, Endpoint, Protocol, ReadRequest
from app.api.fields import Body
from app.api.openapi import documented_answers, takes
from app.api.protocols import PROTOCOLS
from app.api.service import ApiSettings
from app.errors import RequestError
from app.serving.generation import Completion, Generation
from app.serving.types import ChoiceDelta
from app.tasks.generate import GenerateTask, SamplingOptions
from app.tasks.prompts import TextPrompt
from tests.api.conftest import Server, start_server
from tests.serving.rig import until


class Ask(Body):
    """What it takes."""

    texts: Annotated[list[str], Field(min_length=1)]
    model: str | None = None
    most: int | None = None
    ends: list[str] | None = None
    stream: bool | None = None
    patience: float | None = None


class Line(msgspec.Struct, frozen=True):
    """What it answers: one line, or one for each delta."""

    place: int
    text: str
    id: str


class Failure(msgspec.Struct, frozen=True):
    """Its errors."""

    failed: str
    field: str | None


class LineWriter(AnswerWriter):
    """Writes an answer in lines."""

    def __init__(self, head: AnswerHead) -> None:
        self._head = head

    def headers(self, generations: Sequence[Generation]) -> dict[str, str]:
        return {"x-asked": str(sum(generation.usage.prompt_tokens for generation in generations))}

    def frames(self, prompt: int, delta: ChoiceDelta, _generations: Sequence[Generation]) -> list[bytes]:
        return [_line(Line(prompt, delta.text, self._head.id))]

    def end(self, _generations: Sequence[Generation]) -> list[bytes]:
        return [b"null\n"]

    def whole(self, completions: Sequence[Sequence[Completion]], _generations: Sequence[Generation]) -> bytes:
        lines = [Line(prompt, choice.text, self._head.model) for prompt, (choice,) in enumerate(completions)]
        return b"".join(map(_line, lines))


def _line(content: msgspec.Struct) -> bytes:
    return msgspec.json.encode(content) + b"\n"


def _failure(error: RequestError) -> tuple[int, bytes]:
    return 418 if error.status == 400 else error.status, _line(Failure(error.message, error.param))


def _read(body: Ask) -> ReadRequest:
    task = GenerateTask(
        prompts=[TextPrompt(text=text) for text in body.texts],
        sampling=SamplingOptions(temperature=0.0, stop=tuple(body.ends or ())),
        max_tokens=body.most,
        default_max_tokens=7,
        names={"prompt": "texts", "stop": "ends"},
    )
    return ReadRequest(task=task, writer=LineWriter, stream=bool(body.stream), model=body.model, timeout=body.patience)


LINES = Protocol(
    tag="Lines",
    endpoints=[
        Endpoint(
            path="/lines",
            name="lines",
            summary="Lines",
            description="Lines of text.",
            request_body=takes(Ask, {}),
            responses=documented_answers(Failure, {418: "The request cannot be served."}, whole=Line),
            schema=Ask,
            read=_read,
            id_prefix="lines",
            numbers_prompts=True,
        )
    ],
    routes=lambda _service: APIRouter(),
    paths=frozenset({"/lines"}),
    write_error=_failure,
    error_event=lambda error: _failure(error)[1],
    error_schema=Failure,
    answers=[Line],
    stream_type="application/x-ndjson",
    stream_comment=b"\n",
)


@pytest.fixture(autouse=True)
def _spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = (*PROTOCOLS, LINES)
    monkeypatch.setattr("app.api.protocols.PROTOCOLS", spoken)
    monkeypatch.setattr("app.api.app.PROTOCOLS", spoken)


@pytest.fixture
async def lines_server() -> AsyncIterator[Server]:
    async with start_server() as server:
        yield server


async def test_whole_answers_and_streams_say_the_same(lines_server: Server) -> None:
    headers = {"x-request-id": "mine"}
    whole = await lines_server.post("/lines", {"texts": ["ab", "c"]}, headers=headers)
    assert (whole.status_code, whole.headers["x-asked"]) == (200, "3")
    texts = [json.loads(line)["text"] for line in whole.text.splitlines()]
    stream = await lines_server.post("/lines", {"texts": ["ab", "c"], "stream": True, "odd": 1}, headers=headers)
    assert stream.headers["content-type"] == "application/x-ndjson"
    assert stream.headers["x-ignored-params"] == "odd"
    *deltas, end = [json.loads(line) for line in stream.text.splitlines()]
    assert end is None
    assert {delta["id"] for delta in deltas} == {"lines-mine"}
    for place, text in enumerate(texts):
        assert "".join(delta["text"] for delta in deltas if delta["place"] == place) == text
    records = lines_server.rig.ledger.records
    assert {(record.request_id, record.usage.completion_tokens) for record in records} == {
        ("lines-mine-0", 7),
        ("lines-mine-1", 7),
    }


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"texts": ["a"], "ends": ["x"] * 17}, 418, "ends"),
        ({"texts": ["a"] * 300}, 418, "texts"),
        ({"texts": [""]}, 418, "texts"),
        ({"texts": "a"}, 418, "texts"),
        ({"texts": ["a"], "model": "other"}, 404, "model"),
        ({"texts": ["a"], "most": 9999}, 418, "texts"),
        ({"texts": ["a"], "patience": 1e-9}, 504, None),
    ],
)
async def test_refusals_have_its_shape_and_name_its_fields(
    lines_server: Server, body: object, status: int, field: str | None
) -> None:
    answer = await lines_server.post("/lines", body)
    assert (answer.status_code, answer.json()["field"]) == (status, field)
    assert list(answer.json()) == ["failed", "field"]
    assert (await lines_server.http.get("/lines")).json()["failed"]
    assert lines_server.rig.client.in_flight == 0


async def test_a_failure_in_mid_stream_is_its_last_event() -> None:
    async with start_server(delay=0.002) as server:
        sent = server.http.stream("POST", "/lines", json={"texts": ["a"], "most": 400, "stream": True})
        async with sent as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            assert server.rig.runner is not None
            server.rig.runner.fail_collect = lambda _step: True
            last = [line async for line in lines][-1]
        assert list(json.loads(last)) == ["failed", "field"]


async def test_silence_is_filled_as_it_says() -> None:
    async with start_server(ApiSettings(keepalive_interval=0.05), delay=0.3) as server:
        answer = await server.post("/lines", {"texts": ["a"], "most": 1, "stream": True})
        assert answer.text.startswith("\n\n")
        assert answer.headers["content-type"] == "application/x-ndjson"


async def test_the_document_has_it(lines_server: Server) -> None:
    document = (await lines_server.http.get("/openapi.json")).json()
    assert document["paths"]["/lines"]["post"]["tags"] == ["Lines"]
    assert {"Ask", "Line", "Failure"} <= set(document["components"]["schemas"])


async def test_a_client_that_leaves_while_its_prompt_is_encoded_gives_its_room_back() -> None:
    async with start_server(max_num_seqs=1, max_queue=0) as server:
        generator = server.rig.generator

        def is_full() -> bool:
            try:
                with generator.permit("probe", endpoint="/probe"):
                    return False
            except RequestError:
                return True

        release = asyncio.Event()
        loop = asyncio.get_running_loop()
        blocked = functools.partial(asyncio.run_coroutine_threadsafe, loop=loop)
        # Long texts wait for their turn behind this one.
        before = asyncio.create_task(
            generator.tokenizer.long_work.run(1 << 20, lambda: blocked(release.wait()).result(20))
        )
        await asyncio.sleep(0)
        _, writer = await asyncio.open_connection(*server.address)
        content = json.dumps({"texts": ["x" * 100_000]}).encode()
        head = f"POST /lines HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        await until(is_full)
        writer.transport.abort()
        await until(lambda: not is_full())
        release.set()
        await before
        assert server.rig.sample("tuili_requests_refused_total", endpoint="/lines", reason="client_left") == 1
        assert (await server.post("/lines", {"texts": ["a"]})).status_code == 200
