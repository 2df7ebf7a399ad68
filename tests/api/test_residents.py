"""Models that come and go, from their clients' side: every protocol, lists, probes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.api.app import create_app
from app.api.service import ApiSettings, Service
from tests.api.conftest import clients, listening
from tests.serving.residents import KEEP_ALIVE, SIZE, House, house
from tests.serving.rig import until

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "p", "max_tokens": 4},
    "/v1/chat/completions": CHAT,
    "/v1/responses": {"input": "Hi", "max_output_tokens": 4},
    "/v1/messages": CHAT,
    "/api/chat": {"messages": CHAT["messages"], "options": {"num_predict": 4}, "stream": False},
    "/tokenize": {"prompt": "p"},
    "/v1/messages/count_tokens": {"messages": CHAT["messages"]},
    "/v1/responses/input_tokens": {"input": "Hi"},
}


@contextlib.asynccontextmanager
async def serving(it: House, settings: ApiSettings | None = None) -> AsyncIterator[httpx.AsyncClient]:
    service = Service(it.models, it.metrics, settings or ApiSettings())
    async with listening(create_app(service)) as url, clients(url) as (http, _):
        yield http


async def complete(http: httpx.AsyncClient, model: str) -> httpx.Response:
    return await http.post("/v1/completions", json={"model": model, "prompt": "p", "max_tokens": 4})


async def test_each_protocol_loads_the_model_that_it_names() -> None:
    async with house("x", "y", room=1) as it, serving(it) as http:
        for path, body in BODIES.items():
            answer = await http.post(path, json={"model": "y", **body})
            assert answer.status_code == 200, answer.text
            assert it.states == "idle ready"
            assert (await complete(http, "x")).json()["choices"][0]["text"] == "xxxx"
            assert it.states == "ready idle"
        assert (await complete(http, "z")).status_code == 404


async def test_each_protocol_says_in_its_shape_why_a_model_cannot_be_had() -> None:
    async with house("x", "y") as it, serving(it) as http:
        it.sources[1].broken = ValueError("lm_head.weight is missing")
        reason = "The model 'y' is not available: lm_head.weight is missing."
        assert (await complete(http, "x")).status_code == 200
        for path, body in BODIES.items():
            answer = await http.post(path, json={"model": "y", **body})
            assert (answer.status_code, answer.headers.get("retry-after")) == (503, None), path
            error = answer.json()["error"]
            assert reason == (error if isinstance(error, str) else error["message"])
        assert it.states == "ready failed"
        assert (await complete(http, "x")).status_code == 200
        assert [(await http.get(path)).status_code for path in ("/livez", "/readyz", "/startupz")] == [200] * 3


async def test_a_client_that_leaves_while_its_model_loads() -> None:
    async with house("x") as it, serving(it) as http:
        it.sources[0].may_load.clear()
        with pytest.raises(httpx.ReadTimeout):
            await http.post("/v1/completions", json={"prompt": "p"}, timeout=0.3)
        (x,) = it.residents
        await until(lambda: x._waiting == 0)
        it.sources[0].may_load.set()
        assert (await complete(http, "x")).status_code == 200
        assert it.sources[0].starts == 1
        refusals = [
            line for line in (await http.get("/metrics")).text.splitlines() if "requests_refused_total{" in line
        ]
        assert len(refusals) == 1
        assert 'reason="client_left"' in refusals[0]


STREAMS = ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat"]


@pytest.mark.parametrize("path", STREAMS)
async def test_a_stream_that_waits_for_its_model_is_kept_alive(path: str) -> None:
    async with house("x") as it, serving(it, ApiSettings(keepalive_interval=0.02)) as http:
        it.sources[0].may_load.clear()
        body = {"model": "x", "no_such_field": 1, **BODIES[path], "stream": True}
        async with http.stream("POST", path, json=body) as answer:
            assert answer.status_code == 200, "begun by the first comment"
            assert "no_such_field" in answer.headers["x-ignored-params"]
            chunks = answer.aiter_bytes()
            comment = await anext(chunks)
            assert it.states == "loading"
            it.sources[0].may_load.set()
            rest = b"".join([chunk async for chunk in chunks])
        assert comment.startswith((b": keep-alive\n\n", b"event: ping\n", b" ")), "what clients of the protocol skip"
        assert b"error" not in rest.replace(b'"error":null', b"")
        assert rest.count(b"x") >= 4


@pytest.mark.parametrize("path", STREAMS)
async def test_a_load_that_fails_ends_a_stream_that_waited_with_an_error_event(path: str) -> None:
    async with house("x") as it, serving(it, ApiSettings(keepalive_interval=0.02)) as http:
        it.sources[0].may_load.clear()
        it.sources[0].broken = ValueError("lm_head.weight is missing")
        async with http.stream("POST", path, json={"model": "x", **BODIES[path], "stream": True}) as answer:
            chunks = answer.aiter_bytes()
            await anext(chunks)
            it.sources[0].may_load.set()
            rest = b"".join([chunk async for chunk in chunks])
        assert answer.status_code == 200
        assert b"lm_head.weight is missing" in rest
        assert rest.count(b"error") >= 1


async def test_a_whole_answer_waits_for_its_model_within_its_time() -> None:
    async with house("x") as it, serving(it, ApiSettings(keepalive_interval=0.02)) as http:
        it.sources[0].may_load.clear()
        late = await http.post("/v1/completions", json={"model": "x", "timeout": 0.2, **BODIES["/v1/completions"]})
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        waiting = asyncio.create_task(complete(http, "x"))
        await until(lambda: it.residents[0]._waiting == 1)
        it.sources[0].may_load.set()
        assert (await waiting).json()["choices"][0]["text"] == "xxxx"


async def test_a_stream_whose_client_leaves_waits_no_longer() -> None:
    async with house("x") as it, serving(it, ApiSettings(keepalive_interval=0.02)) as http:
        it.sources[0].may_load.clear()
        body = {"model": "x", **BODIES["/v1/completions"], "stream": True}
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            await anext(answer.aiter_bytes())
            assert it.residents[0]._waiting == 1
        await until(lambda: it.residents[0]._waiting == 0)


async def test_a_stream_keeps_its_model_until_it_ends() -> None:
    async with house("x", "y", room=1) as it, serving(it) as http:
        it.sources[0].delay = 0.005
        body = {"model": "x", "prompt": "p", "max_tokens": 60, "stream": True}
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            other = asyncio.create_task(complete(http, "y"))
            await until(lambda: "memory" in it.residents[1].life.reason)
            rest = [line async for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert (await other).json()["choices"][0]["text"] == "yyyy"
        assert it.states == "idle ready"


async def test_lists_and_probes_say_where_each_model_stands() -> None:
    async with house("x", "y", "z") as it, serving(it) as http:
        it.sources[1].absent = True
        it.sources[1].may_fetch.clear()
        await complete(http, "x")
        pulling = asyncio.create_task(complete(http, "y"))
        await until(lambda: it.residents[1].life.how_far is not None)
        cards = (await http.get("/v1/models")).json()["data"]
        assert [(card["id"], card["state"], card["max_model_len"]) for card in cards] == [
            ("x", "ready", 512),
            ("y", "pulling", None),
            ("z", "idle", None),
        ]
        assert cards[1]["progress"] == {"phase": "Downloading it", "done": 40, "total": 100}
        assert (await http.get("/v1/models/y")).json()["reason"] == "Downloading it"
        ready = await http.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["models"][1] == {
            "id": "y",
            "state": "pulling",
            "reason": "Downloading it",
            "done": 40,
            "total": 100,
        }
        tags, loaded = [(await http.get(path)).json()["models"] for path in ("/api/tags", "/api/ps")]
        assert [each["name"] for each in tags] == ["x:latest", "y:latest", "z:latest"]
        assert [each["name"] for each in loaded] == ["x:latest"]
        assert not loaded[0]["expires_at"].startswith("9999")
        shown = await http.post("/api/show", json={"model": "z"})
        assert (shown.status_code, "tools" in shown.json()["capabilities"]) == (200, True)
        assert it.states == "ready pulling idle", "nothing is loaded to be looked at"
        it.sources[1].may_fetch.set()
        await pulling


async def test_a_server_is_ready_when_what_it_loads_at_the_start_is() -> None:
    async with house("x", "y") as it, serving(it) as http:
        it.sources[0].may_load.clear()
        preload = it.residents[0].preload()
        await until(lambda: it.states == "loading idle" and it.sources[0].starts == 1)
        for path in ("/readyz", "/startupz"):
            answer = await http.get(path)
            assert (answer.status_code, answer.json()["state"]) == (503, "loading")
        assert (await http.get("/livez")).status_code == 200
        it.sources[0].may_load.set()
        await preload
        assert (await http.get("/readyz")).json()["state"] == "ready"
        it.residents[0].expire_soon()
        await until(lambda: it.states == "idle idle")
        assert (await http.get("/readyz")).status_code == 200


async def test_keep_alive_of_ollamas_clients() -> None:
    async with house("x") as it, serving(it) as http:
        (x,) = it.residents
        chat = BODIES["/api/chat"]
        for given, left in (("10m", 600.0), (90, 90.0), ("", KEEP_ALIVE), (None, KEEP_ALIVE)):
            answer = await http.post("/api/chat", json={"model": "x", "keep_alive": given, **chat})
            assert answer.status_code == 200
            assert "x-ignored-params" not in answer.headers
            await until(lambda: not x.has_work)
            assert x.expires_in == left
        await http.post("/api/chat", json={"model": "x", "keep_alive": -1, **chat})
        assert (await http.get("/api/ps")).json()["models"][0]["expires_at"].startswith("9999")
        await http.post("/api/chat", json={"model": "x", "keep_alive": 0, **chat})
        await until(lambda: it.states == "idle")
        for given in ("soon", "1w", "5 m"):
            refused = await http.post("/api/chat", json={"model": "x", "keep_alive": given, **chat})
            assert (refused.status_code, "keep_alive" in refused.json()["error"]) == (400, True)


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
async def test_a_model_is_loaded_and_unloaded_on_request(path: str) -> None:
    async with house("x") as it, serving(it) as http:
        loaded = await http.post(path, json={"model": "x", "stream": False})
        assert (loaded.json()["done_reason"], it.states) == ("load", "ready")
        unloaded = await http.post(path, json={"model": "x:latest", "keep_alive": 0})
        assert unloaded.headers["content-type"] == "application/x-ndjson"
        line = unloaded.json()
        assert (line["model"], line["done"], line["done_reason"]) == ("x:latest", True, "unload")
        await until(lambda: it.states == "idle")
        again = await http.post(path, json={"model": "x", "keep_alive": "0s", "stream": False})
        assert (again.json()["done_reason"], it.states) == ("unload", "idle"), "it is not loaded for that"


async def test_what_never_fits_names_the_settings() -> None:
    async with house("x", room=1) as it, serving(it) as http:
        it.sources[0].size = 3 * SIZE
        answer = await complete(http, "x")
        assert answer.status_code == 503
        assert "retry-after" not in answer.headers
        assert "model_memory" in answer.json()["error"]["message"]
