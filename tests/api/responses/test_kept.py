"""Kept responses: gone on from, looked at, deleted, cancelled, each by its own key alone."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from app.answers.answers import Answers
from app.answers.database import AnswersError, KeptAnswer
from app.api.service import ApiSettings
from app.keys import parse_keys
from tests.api.conftest import Server, start_server
from tests.api.responses.conftest import ask, stream
from tests.serving.rig import until

KEYS = {"one": "a-secret-of-20-chars", "two": "b-secret-of-20-chars"}


def texts(items: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(item["role"], item["content"][0]["text"]) for item in items]


async def inputs(server: Server, response_id: str, **query: Any) -> dict[str, Any]:
    answer = await server.http.get(f"/v1/responses/{response_id}/input_items", params=query)
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


async def test_a_conversation_goes_on_from_a_kept_response(keeping: Server) -> None:
    first = await ask(keeping, input="one", instructions="Only now.")
    second = await ask(keeping, input=[{"role": "user", "content": "two"}], previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    assert second["instructions"] is None
    said = first["output"][0]["content"][0]["text"]
    page = await inputs(keeping, second["id"])
    assert texts(page["data"]) == [("user", "two"), ("assistant", said), ("user", "one")]
    whole = await ask(
        keeping,
        input=[
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": said},
            {"role": "user", "content": "two"},
        ],
    )
    assert second["usage"]["input_tokens"] == whole["usage"]["input_tokens"]
    assert second["output"][0]["content"] == whole["output"][0]["content"]
    streamed = await stream(keeping, input="two", previous_response_id=first["id"])
    assert streamed[-1]["response"]["output"][0]["content"] == whole["output"][0]["content"]


async def test_kept_is_what_was_answered(keeping: Server) -> None:
    whole = await ask(keeping, input="hi")
    streamed = (await stream(keeping, input="hi", store=True))[-1]["response"]
    for answer in (whole, streamed):
        assert (await keeping.http.get(f"/v1/responses/{answer['id']}")).json() == answer
    unkept = await ask(keeping, input="hi", store=False)
    assert unkept["store"] is False
    assert (await keeping.http.get(f"/v1/responses/{unkept['id']}")).status_code == 404
    error = await ask(keeping, 400, input="x", previous_response_id=unkept["id"])
    assert error["code"] == "previous_response_not_found"


async def test_tokens_are_counted_as_they_would_be_read(keeping: Server) -> None:
    first = await ask(keeping, input="one")
    body = {"input": "two", "previous_response_id": first["id"], "odd": 1}
    counted = await keeping.post("/v1/responses/input_tokens", body)
    assert counted.headers["x-ignored-params"] == "odd"
    second = await ask(keeping, **body)
    tokens = second["usage"]["input_tokens"]
    assert counted.json() == {"object": "response.input_tokens", "input_tokens": tokens}
    for bad in ({}, {"input": "x", "previous_response_id": "none"}):
        assert (await keeping.post("/v1/responses/input_tokens", bad)).status_code == 400


async def test_pages_of_input_items(keeping: Server) -> None:
    items = [{"role": "user", "content": letter} for letter in "abcde"]
    response_id = (await ask(keeping, input=items))["id"]
    first = await inputs(keeping, response_id, limit=2, order="asc")
    assert ([text for _, text in texts(first["data"])], first["has_more"]) == (["a", "b"], True)
    assert (first["first_id"], first["last_id"]) == (first["data"][0]["id"], first["data"][1]["id"])
    rest = await inputs(keeping, response_id, limit=3, order="asc", after=first["last_id"])
    assert ([text for _, text in texts(rest["data"])], rest["has_more"]) == (["c", "d", "e"], False)
    newest = await inputs(keeping, response_id, limit=1)
    assert [text for _, text in texts(newest["data"])] == ["e"]
    assert (await inputs(keeping, response_id, after=rest["last_id"], order="asc"))["data"] == []
    for query in ("limit=0", "limit=101", "limit=x", "order=up", "after=none"):
        answer = await keeping.http.get(f"/v1/responses/{response_id}/input_items?{query}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, query.split("=")[0])


async def test_a_deleted_response_is_gone_and_the_conversation_goes_on(keeping: Server) -> None:
    first = await ask(keeping, input="one")
    second = await ask(keeping, input="two", previous_response_id=first["id"])
    path = f"/v1/responses/{first['id']}"
    assert (await keeping.http.delete(path)).json() == {"id": first["id"], "object": "response", "deleted": True}
    for method, end in (("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")):
        answer = await keeping.http.request(method, path + end)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "response_not_found")
    third = await ask(keeping, input="three", previous_response_id=second["id"])
    assert [text for _, text in texts((await inputs(keeping, third["id"], order="asc"))["data"])][::2] == [
        "one", "two", "three",
    ]  # fmt: skip


async def test_references_stand_for_kept_items(keeping: Server) -> None:
    first = await ask(keeping, input="one")
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    asked = (await inputs(keeping, first["id"]))["data"][0]["id"]
    second = await ask(keeping, input=[{"id": asked}, reference, {"role": "user", "content": "two"}])
    went_on = await ask(keeping, input="two", previous_response_id=first["id"])
    assert second["usage"]["input_tokens"] == went_on["usage"]["input_tokens"]
    assert second["output"][0]["content"] == went_on["output"][0]["content"]


async def test_a_key_finds_its_own_responses_alone(answers: Answers) -> None:
    keys = parse_keys([f"{name}:infer:{secret}" for name, secret in KEYS.items()])
    async with start_server(ApiSettings(api_keys=keys)) as server:
        server.service.answers = answers
        mine, other = ({"authorization": f"Bearer {secret}"} for secret in KEYS.values())
        made = await server.post("/v1/responses", {"input": "hi", "max_output_tokens": 2}, headers=mine)
        path = f"/v1/responses/{made.json()['id']}"
        item = made.json()["output"][0]["id"]
        for method, end in (("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")):
            assert (await server.http.request(method, path + end, headers=other)).status_code == 404
            assert (await server.http.request(method, path + end)).status_code == 401
        body = {"input": "x", "previous_response_id": made.json()["id"]}
        assert (await server.post("/v1/responses", body, headers=other)).status_code == 400
        body = {"input": [{"type": "item_reference", "id": item}]}
        assert (await server.post("/v1/responses", body, headers=other)).status_code == 404
        assert (await server.http.get(path, headers=mine)).json() == made.json()
        assert (await server.post("/v1/responses", body, headers=mine)).status_code == 200


async def _begun(server: Server, lines: Any) -> str:
    """Reads a stream until there is text; the response's id."""
    response_id = ""
    async for line in lines:
        if line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            response_id = response_id or event["response"]["id"]
            if event["type"] == "response.output_text.delta":
                return response_id
    raise AssertionError("there is no text")


async def test_cancelling_ends_a_stream_and_keeps_what_there_is(answers: Answers) -> None:
    async with start_server(delay=0.002) as server:
        server.service.answers = answers
        asked = {"input": "hi", "max_output_tokens": 400, "stream": True}
        async with server.http.stream("POST", "/v1/responses", json=asked) as streamed:
            lines = streamed.aiter_lines()
            response_id = await _begun(server, lines)
            path = f"/v1/responses/{response_id}"
            under_way = (await server.http.get(path)).json()
            assert under_way["status"] == "in_progress"
            assert under_way["output"][0]["content"][0]["text"]
            error = await ask(server, 400, input="x", previous_response_id=response_id)
            assert error["code"] == "response_in_progress"
            cancelled = (await server.http.post(f"{path}/cancel")).json()
            assert (cancelled["id"], cancelled["status"]) == (response_id, "cancelled")
            data = [line.removeprefix("data: ") async for line in lines if line.startswith("data: ")]
        error_event, failed = map(json.loads, data[-3:-1])
        assert data[-1] == "[DONE]"
        assert (error_event["type"], error_event["error"]["code"]) == ("error", "request_cancelled")
        assert (failed["type"], failed["response"]["status"]) == ("response.failed", "cancelled")
        kept = (await server.http.get(path)).json()
        assert kept == failed["response"]
        assert kept["output"][0]["status"] == "incomplete"
        assert (await server.http.post(f"{path}/cancel")).json() == kept


async def test_a_response_whose_client_leaves_is_kept_as_cancelled(answers: Answers) -> None:
    async with start_server(delay=0.002) as server:
        server.service.answers = answers
        asked = {"input": "hi", "max_output_tokens": 400, "stream": True}
        async with server.http.stream("POST", "/v1/responses", json=asked) as streamed:
            response_id = await _begun(server, streamed.aiter_lines())
        await until(lambda: answers.under_way(response_id, "") is None)
        kept = (await server.http.get(f"/v1/responses/{response_id}")).json()
        assert (kept["status"], kept["error"]["code"]) == ("cancelled", "client_left")
        assert kept["output"][0]["content"][0]["text"]


async def test_a_failure_in_mid_stream_is_told_and_kept(answers: Answers) -> None:
    async with start_server(delay=0.002) as server:
        server.service.answers = answers
        asked = {"input": "hi", "max_output_tokens": 400, "stream": True}
        async with server.http.stream("POST", "/v1/responses", json=asked) as streamed:
            lines = streamed.aiter_lines()
            response_id = await _begun(server, lines)
            assert server.rig.runner is not None
            server.rig.runner.fail_collect = lambda _step: True
            data = [line.removeprefix("data: ") async for line in lines if line.startswith("data: ")]
        error, failed = map(json.loads, data[-3:-1])
        assert (error["type"], failed["type"]) == ("error", "response.failed")
        assert error["message"] == error["error"]["message"] == failed["response"]["error"]["message"]
        assert failed["response"]["status"] == "failed"
        assert (await server.http.get(f"/v1/responses/{response_id}")).json() == failed["response"]


async def test_an_answer_that_cannot_be_kept_says_so(keeping: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_answer: KeptAnswer) -> None:
        raise AnswersError("the disk is full")

    monkeypatch.setattr(keeping.service.answers, "put", fail)
    whole = await ask(keeping, input="hi")
    assert whole["store"] is False
    final = (await stream(keeping, input="hi"))[-1]
    assert (final["type"], final["response"]["store"]) == ("response.incomplete", False)


async def test_what_cannot_be_read_is_an_error_to_try_again(keeping: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_args: str) -> None:
        raise AnswersError("the disk is gone")

    first = await ask(keeping, input="hi")
    for name in ("get", "conversation", "delete"):
        monkeypatch.setattr(keeping.service.answers, name, fail)
    path = f"/v1/responses/{first['id']}"
    sent = [
        keeping.http.get(path),
        keeping.http.delete(path),
        keeping.http.get(f"{path}/input_items"),
        keeping.post("/v1/responses", {"input": "x", "previous_response_id": first["id"]}),
    ]
    for answer in await asyncio.gather(*sent):
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        assert answer.headers["retry-after"]


async def test_streams_of_kept_responses_and_compaction_are_refused(keeping: Server) -> None:
    first = await ask(keeping, input="hi")
    answer = await keeping.http.get(f"/v1/responses/{first['id']}?stream=true")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream")
    assert (await keeping.post("/v1/responses/compact", {"input": "x"})).status_code == 404
