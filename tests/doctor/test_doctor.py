"""`tuili doctor` against our own server, whose answers are all right, and against one that spoils them on the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.doctor.check import Outcome
from app.doctor.run import examine
from tests.api.conftest import NO_TLS, listening, start_server

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@dataclass
class Answer:
    """What a server said, before it is spoiled."""

    path: str
    request: bytes
    status: int
    headers: dict[str, str]
    body: bytes

    def replace(self, pattern: str, replacement: str) -> None:
        self.body = re.sub(pattern.encode(), replacement.encode(), self.body)

    @property
    def events(self) -> list[bytes]:
        return [event for event in self.body.split(b"\n\n") if event]

    @events.setter
    def events(self, events: list[bytes]) -> None:
        self.body = b"".join(event + b"\n\n" for event in events)


Spoil = Callable[[Answer], None]


@contextlib.asynccontextmanager
async def spoiled(spoil: Spoil) -> AsyncIterator[str]:
    """A real server whose answers pass through ``spoil``."""
    async with (
        start_server() as server,
        httpx.AsyncClient(base_url=server.url, verify=NO_TLS, timeout=20) as http,
    ):

        async def forward(request: Request) -> Response:
            body = await request.body()
            headers = {
                name: value for name, value in request.headers.items() if name in ("content-type", "x-request-id")
            }
            got = await http.request(request.method, request.url.path, content=body, headers=headers)
            kept = {name: value for name, value in got.headers.items() if name.startswith(("content-type", "x-"))}
            answer = Answer(request.url.path, body, got.status_code, kept, got.content)
            spoil(answer)
            return Response(answer.body, answer.status, answer.headers)

        async with listening(Starlette(routes=[Route("/{path:path}", forward, methods=["GET", "POST"])])) as url:
            yield url


async def examined(url: str) -> dict[str, Outcome]:
    return {outcome.name: outcome for outcome in await asyncio.to_thread(lambda: list(examine(url)))}


async def failures(spoil: Spoil) -> dict[str, str]:
    """Why which checks fail of a server that is otherwise right."""
    async with spoiled(spoil) as url:
        return {name: found.detail for name, found in (await examined(url)).items() if found.status != "ok"}


async def doctor(*args: str) -> tuple[int | None, dict[str, Any], str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app.cli", "doctor", *args, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    lines = out.decode().splitlines()
    return process.returncode, json.loads(lines[-1]) if lines else {}, err.decode()


async def test_a_right_server_from_the_command_line() -> None:
    async with start_server() as server:
        code, row, text = await doctor(f"{server.url}/v1")
        assert (code, row["failed"], row["not_offered"]) == (0, 0, 0), text
        assert row["ok"] == len(row["checks"]) > 25
        for name in ("chat: stop string", "echo with logprobs", "generate_stream", "metrics"):
            assert name in text
        code, row, text = await doctor(server.url, "--json", "--model", "other")
    assert (code, text) == (1, "")
    assert {"chat: whole answer", "echo with logprobs"} <= {
        check["name"] for check in row["checks"] if check["status"] == "failed" and "HTTP 404" in check["detail"]
    }, "a model that is not there is no protocol that is not there"


async def test_no_server_is_one_line() -> None:
    code, row, text = await doctor("http://127.0.0.1:1")
    assert (code, row) == (1, {})
    assert "cannot reach http://127.0.0.1:1" in text
    assert "Traceback" not in text


def role_first(answer: Answer) -> None:
    if answer.path == CHAT and answer.body.startswith(b"data:"):
        first = re.sub(rb'"content":"[^"]*"', b'"content":""', answer.events[0])
        answer.events = [first, *(event.replace(b'"role":"assistant",', b"") for event in answer.events)]


def without_done(answer: Answer) -> None:
    if answer.path == CHAT:
        answer.events = [event for event in answer.events if event != b"data: [DONE]"]


def early_finish(answer: Answer) -> None:
    if answer.path == COMPLETIONS and answer.body.startswith(b"data:"):
        answer.replace('"finish_reason":null', '"finish_reason":"stop"')


def extra_usage(answer: Answer) -> None:
    if answer.path == CHAT and b"[DONE]" in answer.body and b"include_usage" not in answer.request:
        empty = re.sub(rb'"choices":\[.*\]', b'"choices":[]', answer.events[-2])
        answer.events = [*answer.events[:-1], empty, answer.events[-1]]


def leaking_stop(answer: Answer) -> None:
    if answer.path == COMPLETIONS and b'"stop":[' in answer.request and not answer.body.startswith(b"data:"):
        content = json.loads(answer.body)
        content["choices"][0]["text"] += json.loads(answer.request)["stop"][0][:1]
        answer.body = json.dumps(content).encode()


def validation_422(answer: Answer) -> None:
    if answer.path == CHAT and answer.status == 400:
        answer.status, answer.body = 422, b'{"detail":"no"}'


def wrong_model_answered(answer: Answer) -> None:
    if answer.path == COMPLETIONS and answer.status == 404:
        answer.status = 200


def rounded_top(answer: Answer) -> None:
    if answer.path == COMPLETIONS and b'"echo"' in answer.request and b'"choices"' in answer.body:
        content = json.loads(answer.body)
        tops = content["choices"][0]["logprobs"]["top_logprobs"]
        tops[3] = {token: round(value - 0.01, 2) for token, value in tops[3].items()}
        answer.body = json.dumps(content).encode()


def null_top(answer: Answer) -> None:
    if answer.path == CHAT:
        answer.replace(r'"top_logprobs":\[\]', '"top_logprobs":null')


def generate_done(answer: Answer) -> None:
    if answer.path == "/generate_stream":
        answer.body += b"data: [DONE]\n\n"


def no_tgi_headers(answer: Answer) -> None:
    if answer.path == "/generate":
        answer.headers.pop("x-queue-time", None)


def bare_root(answer: Answer) -> None:
    if answer.path == "/" and answer.body.startswith(b"["):
        answer.body = answer.body[1:-1]


def no_room(answer: Answer) -> None:
    if answer.path == "/info":
        answer.replace(r'"max_input_tokens":\d+', '"max_input_tokens":99999999')


def half_of_the_metrics(answer: Answer) -> None:
    if answer.path == "/metrics":
        answer.replace("vllm:prefix_cache", "other:prefix_cache")


def own_request_id(answer: Answer) -> None:
    answer.headers["x-request-id"] = "mine"


def not_json(answer: Answer) -> None:
    if answer.path == "/tokenize":
        answer.body = b"<html>"


def unready(answer: Answer) -> None:
    if answer.path == "/readyz":
        answer.status = 503


def bare_models(answer: Answer) -> None:
    if answer.path == "/v1/models":
        answer.replace('"object":"model"', '"object":"thing"')


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (role_first, {"chat: stream": "the role comes before the first text"}),
        (without_done, dict.fromkeys(("chat: stream", "chat: usage in a stream", "chat: stop string"), "[DONE]")),
        (early_finish, {"completions: stream": "before the last chunk"}),
        (extra_usage, {"chat: stream": "a chunk without choices"}),
        (leaking_stop, {"completions: stop string": "the text up to the stop string"}),
        (
            validation_422,
            dict.fromkeys(("chat: bad temperature", "chat: over-long context", "chat: malformed JSON"), "422, not 400"),
        ),
        (wrong_model_answered, {"completions: unknown model": "the status is 200, not 404"}),
        (rounded_top, {"echo with logprobs": "token 3 of the prompt has logprob"}),
        (null_top, {"chat: logprobs": "top_logprobs is null, not a list"}),
        (generate_done, {"generate_stream": "[DONE]"}),
        (no_tgi_headers, {"generate": "x-queue-time is missing"}),
        (bare_root, {"either way at the root": "[0].generated_text is missing"}),
        (no_room, {"info": "no room for an answer"}),
        (half_of_the_metrics, {"metrics": "no vllm:prefix_cache_queries, vllm:prefix_cache_hits"}),
        (own_request_id, {"request id": "'mine', not 'tuili-doctor-1'"}),
        (not_json, {"tokenize and detokenize": "not JSON"}),
        (unready, {"probe /readyz": "HTTP 503"}),
        (bare_models, {"models": "data[0].object is 'thing', not 'model'"}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
async def test_what_is_broken_is_named_and_nothing_else(spoil: Spoil, expected: dict[str, str]) -> None:
    found = await failures(spoil)
    assert found.keys() == expected.keys()
    for name, detail in expected.items():
        assert detail in found[name]
        assert "\n" not in found[name]


async def test_what_is_not_there_is_no_fault() -> None:
    def openai_only(answer: Answer) -> None:
        if not answer.path.startswith("/v1/"):
            answer.status, answer.body = 404, b'{"detail":"Not Found"}'

    async with spoiled(openai_only) as url:
        outcomes = await examined(url)
        code, row, _ = await doctor(url, "--json")
    assert {outcome.protocol for outcome in outcomes.values() if outcome.status == "ok"} == {
        "OpenAI",
        "lm-eval",
        "operations",
    }
    assert {outcome.status for outcome in outcomes.values()} == {"ok", "not offered"}
    assert {outcome.status for outcome in outcomes.values() if outcome.protocol == "TGI"} == {"not offered"}
    assert (code, row["failed"]) == (0, 0)


async def test_a_server_that_offers_nothing_fails() -> None:
    def nothing(answer: Answer) -> None:
        answer.status, answer.body = 404, b"no"

    async with spoiled(nothing) as url:
        code, row, _ = await doctor(url)
    assert (code, row["ok"], row["failed"]) == (1, 0, 0)
