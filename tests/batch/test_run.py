"""Batches against a live server, and against servers that behave otherwise."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from app.batch import sender
from app.batch.errors import BatchError
from app.batch.run import DONE, FAILED, INTERRUPTED, Batch, Options, answer
from tests.api.conftest import NO_TLS, Server, listening, start_server

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with start_server() as running_server:
        yield running_server


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "_FIRST_PAUSE", 0.001)


def row(custom_id: str, url: str = COMPLETIONS, **body: Any) -> dict[str, Any]:
    body = body or {"prompt": custom_id, "max_tokens": 2}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def write(path: Path, rows: Sequence[object]) -> Path:
    file = path / "requests.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return file


async def finish(file: Path, url: str, **options: Any) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code of a run, and the results by their ``custom_id``."""
    with Batch(Options(requests=file, **options)) as batch:
        async with httpx.AsyncClient(verify=NO_TLS, timeout=None) as http:  # noqa: S113 - as in a run
            code = await answer(batch, http, url, Console(file=io.StringIO()), api_key="s3cret")
        output = batch.results.path
    results = [json.loads(line) for line in output.read_text().splitlines()]
    assert len({result["custom_id"] for result in results}) == len(results)
    return code, {result["custom_id"]: result for result in results}


class Scripted:
    """A server that says what a function says."""

    def __init__(self, say: Callable[[str, int], Response]) -> None:
        """``say(prompt, attempt)`` is the answer to a prompt's ``attempt``-th request."""
        self._say = say
        self.attempts: dict[str, int] = {}
        self.running = self.most_running = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        prompt = (await Request(scope, receive).json())["prompt"]
        self.attempts[prompt] = self.attempts.get(prompt, 0) + 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await self.gate.wait()
        self.running -= 1
        await self._say(prompt, self.attempts[prompt])(scope, receive, send)


async def test_one_row_in_is_one_row_out(server: Server, tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    file = write(tmp_path, [row("a"), row("b", CHAT, **chat), row("ü" * 40), row("bad", temperature=-1, prompt="x")])
    code, results = await finish(file, server.url)
    assert code == FAILED  # one of them
    assert set(results) == {"a", "b", "ü" * 40, "bad"}
    result = results["a"]
    assert list(result) == ["id", "custom_id", "response", "error"]
    assert result["id"].startswith("batch_req_")
    assert result["error"] is None
    assert list(result["response"]) == ["status_code", "request_id", "body"]
    assert result["response"]["status_code"] == 200
    assert result["response"]["request_id"] == result["id"]
    assert result["response"]["body"]["object"] == "text_completion"
    assert results["b"]["response"]["body"]["object"] == "chat.completion"
    refused = results["bad"]["response"]
    assert (refused["status_code"], refused["body"]["error"]["param"]) == (400, "temperature")
    assert len({each["id"] for each in results.values()}) == 4


async def test_all_answered_is_success_and_results_lie_beside_the_requests(server: Server, tmp_path: Path) -> None:
    file = write(tmp_path, [row(f"row-{i}") for i in range(20)])
    code, results = await finish(file, server.url)
    assert (code, len(results)) == (DONE, 20)
    assert (tmp_path / "requests.results.jsonl").is_file()


async def test_what_is_no_request_is_a_row_with_an_error(server: Server, tmp_path: Path) -> None:
    rows = [
        row("get") | {"method": "GET"},
        row("elsewhere") | {"url": "https://example.com/v1/completions"},
        row("no-host") | {"url": "//example.com/"},
        row("relative") | {"url": "v1/completions"},
        row("stream", prompt="x", stream=True),
        row("list") | {"body": [1]},
        {"custom_id": "bare"},
        row("route", "/v1/nothing"),
    ]
    code, results = await finish(write(tmp_path, rows), server.url)
    assert code == FAILED
    assert results.pop("route")["response"]["status_code"] == 404
    assert len(results) == 7
    for result in results.values():
        assert result["response"] is None
        assert result["error"]["code"] == "invalid_request"
        assert result["error"]["message"]


async def test_a_run_goes_on_where_the_last_one_was(server: Server, tmp_path: Path) -> None:
    file = write(tmp_path, [row(f"row-{i}") for i in range(6)])
    output = tmp_path / "out.jsonl"
    _, first = await finish(file, server.url, output=output)
    lines = output.read_bytes().splitlines(keepends=True)
    for cut in (b"", lines[3][:25], lines[3][:-1], lines[3][:3]):
        output.write_bytes(b"".join(lines[:3]) + cut)
        before = len(server.rig.ledger.records)
        code, results = await finish(file, server.url, output=output)
        assert (code, len(results)) == (DONE, 6)
        assert len(server.rig.ledger.records) - before == 3
        assert output.read_bytes().startswith(b"".join(lines[:3]))
    assert set(first) == {f"row-{i}" for i in range(6)}


async def test_failures_of_earlier_runs_count(server: Server, tmp_path: Path) -> None:
    file = write(tmp_path, [row("bad", prompt=5)])
    for _ in range(2):
        code, results = await finish(file, server.url)
        assert (code, len(results)) == (FAILED, 1)
    assert not server.rig.ledger.records


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"custom_id": "a"}\n{"custom_id": "a"}\n', "line 2 has the custom_id of a row before it"),
        ('{"custom_id": "a"}\n\nnot json\n', "line 3 is no row"),
        ('{"custom_id": ""}\n', "line 1 is no row"),
        ('{"custom_id": 5}\n', "line 1 is no row"),
        ('["a"]\n', "line 1 is no row"),
        ('{"custom_id": "a"', "line 1 is no row"),
        ("\n \n", "has no rows"),
    ],
)
def test_files_whose_rows_cannot_be_told_apart_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(text)
    with pytest.raises(BatchError, match=message):
        Batch(Options(requests=file))
    assert not (tmp_path / "requests.results.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("notes of somebody", "no result of a batch"),
        ('{"id":"batch_req_1","custom_id":"other","response":null,"error":null}\n', "another batch's request 'other'"),
        ('{"id":"batch_req_1","custom_id":"a"}\n' * 2, "line 2 is a second result of request 'a'"),
        ("{}\n", "line 1 is no result"),
    ],
)
def test_files_that_are_no_results_of_the_batch_stay_as_they_are(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, [row("a")])
    output = tmp_path / "out.jsonl"
    output.write_text(text)
    with pytest.raises(BatchError, match=message):
        Batch(Options(requests=file, output=output))
    assert output.read_text() == text


def test_requests_are_not_their_own_results(tmp_path: Path) -> None:
    file = write(tmp_path, [row("a")])
    (tmp_path / "link").symlink_to(file)
    for output in (file, tmp_path / "link"):
        with pytest.raises(BatchError, match="name another file"):
            Batch(Options(requests=file, output=output))


def test_two_runs_do_not_write_the_same_results(tmp_path: Path) -> None:
    file = write(tmp_path, [row("a")])
    with Batch(Options(requests=file)), pytest.raises(BatchError, match="another run"):
        Batch(Options(requests=file))
    Batch(Options(requests=file)).results.close()


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(row("a")).encode())
    with Batch(Options(requests=file)) as batch:
        assert [each.custom_id for each in batch.left()] == ["a"]


async def test_a_server_without_room_is_asked_again(tmp_path: Path) -> None:
    def say(prompt: str, attempt: int) -> Response:
        status = {"busy": 429, "down": 503}.get(prompt, 200) if attempt < 3 else 200
        return JSONResponse({"attempt": attempt}, status, {"Retry-After": "0"})

    scripted = Scripted(say)
    async with listening(scripted) as url:
        code, results = await finish(write(tmp_path, [row(name) for name in ("busy", "down", "fine")]), url)
    assert code == DONE
    assert scripted.attempts == {"busy": 3, "down": 3, "fine": 1}
    assert results["busy"]["response"]["body"] == {"attempt": 3}


async def test_after_the_last_try_its_answer_is_the_rows(tmp_path: Path) -> None:
    scripted = Scripted(lambda *_: JSONResponse({"error": {"message": "full"}}, 429))
    async with listening(scripted) as url:
        code, results = await finish(write(tmp_path, [row("a")]), url, retries=2)
    assert (code, scripted.attempts) == (FAILED, {"a": 3})
    assert results["a"]["response"]["status_code"] == 429
    assert results["a"]["error"] is None


def test_pauses_are_what_the_server_asks_for_within_bounds() -> None:
    assert sender.pause(0, "7") == 7
    assert sender.pause(0, "86400") == 60
    assert sender.pause(1000, "") == 60
    assert sender.pause(3, "Wed, 21 Oct 2026 07:28:00 GMT") == sender.pause(3, "") == 8 * sender.pause(0, "")


async def test_what_is_no_json_is_kept_as_text(tmp_path: Path) -> None:
    scripted = Scripted(lambda prompt, _: Response(b"<html>\n\xff" if prompt == "a" else b'{\n "x": [1.50]\n}', 500))
    async with listening(scripted) as url:
        _, results = await finish(write(tmp_path, [row("a"), row("b")]), url)
    assert results["a"]["response"]["body"] == "<html>\n\ufffd"
    assert results["b"]["response"]["body"] == {"x": [1.5]}


async def test_a_server_that_breaks_off_is_asked_again_and_then_it_is_an_error(tmp_path: Path) -> None:
    attempts = 0

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        await reader.read(1)
        writer.transport.abort()

    async with await asyncio.start_server(reset, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        code, results = await finish(write(tmp_path, [row("a")]), f"http://127.0.0.1:{port}", retries=2)
    assert (code, attempts) == (FAILED, 3)
    assert results["a"]["error"]["code"] == "connection_error"
    assert results["a"]["response"] is None


async def test_what_takes_too_long_is_an_error(tmp_path: Path) -> None:
    scripted = Scripted(lambda *_: JSONResponse({}))
    scripted.gate.clear()
    async with listening(scripted) as url:
        code, results = await finish(write(tmp_path, [row("a")]), url, timeout=0.05)
        scripted.gate.set()
    assert (code, results["a"]["error"]["code"]) == (FAILED, "timeout")


async def test_a_server_that_is_not_there_costs_no_row(tmp_path: Path) -> None:
    file = write(tmp_path, [row("a"), row("b")])
    with pytest.raises(BatchError, match=r"cannot reach http://127\.0\.0\.1:1"):
        await finish(file, "http://127.0.0.1:1", retries=1)
    assert (tmp_path / "requests.results.jsonl").read_text() == ""


async def test_a_key_that_is_not_taken_costs_no_row(tmp_path: Path) -> None:
    scripted = Scripted(lambda *_: JSONResponse({"error": {"message": "no such key"}}, 401))
    async with listening(scripted) as url:
        with pytest.raises(BatchError, match="401: no such key"):
            await finish(write(tmp_path, [row("a"), row("b")]), url, concurrency=1)
    assert scripted.attempts == {"a": 1}
    assert (tmp_path / "requests.results.jsonl").read_text() == ""


async def test_no_more_run_at_once_than_may(tmp_path: Path) -> None:
    scripted = Scripted(lambda *_: JSONResponse({}))
    scripted.gate.clear()
    async with listening(scripted) as url:
        running = asyncio.create_task(finish(write(tmp_path, [row(str(i)) for i in range(30)]), url, concurrency=3))
        while scripted.running < 3:  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.002)
        scripted.gate.set()
        await running
    assert scripted.most_running == 3
    assert len(scripted.attempts) == 30


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_lets_what_runs_come_to_its_end(tmp_path: Path, number: signal.Signals) -> None:
    scripted = Scripted(lambda *_: JSONResponse({}))
    scripted.gate.clear()
    file = write(tmp_path, [row(str(i)) for i in range(8)])
    async with listening(scripted) as url:
        running = asyncio.create_task(finish(file, url, concurrency=2))
        while scripted.running < 2:  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.002)
        os.kill(os.getpid(), number)
        await asyncio.sleep(0.01)
        scripted.gate.set()
        code, results = await running
        assert code == INTERRUPTED
        assert len(results) == len(scripted.attempts) == 2
        code, results = await finish(file, url)
    assert (code, len(results)) == (DONE, 8)
    assert set(scripted.attempts.values()) == {1}


async def test_a_signal_that_comes_when_all_is_under_way_changes_nothing(tmp_path: Path) -> None:
    scripted = Scripted(lambda *_: JSONResponse({}))
    scripted.gate.clear()
    async with listening(scripted) as url:
        running = asyncio.create_task(finish(write(tmp_path, [row("a"), row("b")]), url))
        while scripted.running < 2:  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.01)
        scripted.gate.set()
        code, results = await running
    assert (code, len(results)) == (DONE, 2)


async def test_a_second_signal_ends_what_runs(tmp_path: Path) -> None:
    scripted = Scripted(lambda *_: JSONResponse({}))
    scripted.gate.clear()
    async with listening(scripted) as url:
        running = asyncio.create_task(finish(write(tmp_path, [row("a"), row("b")]), url, concurrency=1))
        while not scripted.running:  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.002)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.01)
        assert await running == (INTERRUPTED, {})
        scripted.gate.set()


async def test_a_signal_does_not_wait_for_a_server_without_room(tmp_path: Path) -> None:
    scripted = Scripted(lambda *_: JSONResponse({}, 429, {"Retry-After": "60"}))
    async with listening(scripted) as url:
        running = asyncio.create_task(finish(write(tmp_path, [row("a")]), url))
        while not scripted.attempts:  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)
        assert await asyncio.wait_for(running, 20) == (INTERRUPTED, {})


async def test_progress_is_for_terminals(server: Server, tmp_path: Path) -> None:
    file = write(tmp_path, [row("a")])
    for terminal in (False, True):
        shown = io.StringIO()
        console = Console(file=shown, force_terminal=terminal)
        with Batch(Options(requests=file, output=tmp_path / str(terminal))) as batch:
            async with httpx.AsyncClient(verify=NO_TLS) as http:
                assert await answer(batch, http, server.url, console) == DONE
            assert batch.summary() == f"1 of 1 rows done, 0 failed: {tmp_path / str(terminal)}"
        assert ("1/1" in shown.getvalue()) is terminal
