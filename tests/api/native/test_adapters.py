"""Adapters over HTTP: named as a model, listed, loaded and unloaded while the server runs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.api.service import ApiSettings
from app.keys import parse_keys
from tests.api.conftest import Server, start_server
from tests.fake_adapters import AdaptedRunner

KEY, ADMIN = "k" * 16, "a" * 16


@contextlib.asynccontextmanager
async def serving(
    settings: ApiSettings | None = None, max_adapters: int = 2
) -> AsyncIterator[tuple[Server, AdaptedRunner]]:
    async with start_server(settings, kind=AdaptedRunner, max_adapters=max_adapters) as server:
        assert isinstance(server.rig.runner, AdaptedRunner)
        yield server, server.rig.runner


async def load(server: Server, name: str, path: str = "/adapters/x", **fields: Any) -> httpx.Response:
    return await server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path, **fields})


async def test_an_adapter_is_a_model_by_name() -> None:
    async with serving() as (server, runner):
        loaded = await load(server, "support", "/adapters/support")
        assert (loaded.status_code, "support" in loaded.text) == (200, True)
        cards = {card["id"]: card for card in (await server.http.get("/v1/models")).json()["data"]}
        base, card = cards["fake-model"], cards["support"]
        assert (base["parent"], card["parent"], card["root"]) == (None, "fake-model", "fake-model")
        assert (await server.http.get("/v1/models/support")).json() == card
        for name, path in (("support", "/adapters/support"), ("support:latest", "/adapters/support"), (None, "")):
            runner.seen.clear()
            answer = await server.openai.completions.create(model=name or "fake-model", prompt="Hi", max_tokens=3, n=2)
            assert answer.model == (name or "fake-model")
            assert set.union(*runner.seen) == {path}
        streamed = await server.openai.completions.create(model="support", prompt="Hi", max_tokens=3, stream=True)
        assert {chunk.model async for chunk in streamed} == {"support"}
        metrics = (await server.http.get("/metrics")).text
        assert 'model_name="support"' not in metrics, "clients that load adapters make no series"


async def test_what_was_unloaded_is_no_model_any_more() -> None:
    async with serving() as (server, _):
        await load(server, "support")
        unloaded = await server.post("/v1/unload_lora_adapter", {"lora_name": "support"})
        assert unloaded.status_code == 200
        answer = await server.post("/v1/completions", {"model": "support", "prompt": "Hi"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        again = await server.post("/v1/unload_lora_adapter", {"lora_name": "support"})
        assert (again.status_code, again.json()["error"]["code"]) == (404, "adapter_not_found")
        assert (await load(server, "support")).status_code == 200


async def test_what_cannot_be_loaded_is_refused_with_its_reason() -> None:
    async with serving() as (server, _):
        refused = await load(server, "x", "/bad")
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "adapter_refused")
        assert "/bad: no such adapter" in refused.json()["error"]["message"]
        assert (await load(server, "a")).status_code == 200
        for name in ("a", "fake-model"):
            taken = await load(server, name)
            assert (taken.status_code, taken.json()["error"]["code"]) == (409, "adapter_exists")
        assert (await load(server, "b")).status_code == 200
        full = await load(server, "c")
        assert "all 2 slots" in full.json()["error"]["message"]
        unnamed = await load(server, "no name")
        assert (unnamed.status_code, unnamed.json()["error"]["param"]) == (400, "lora_name")
        other = await load(server, "d", base_model_name="unknown")
        assert other.status_code == 404
        beside = await load(server, "d", base_model_name="a")
        assert (beside.status_code, beside.json()["error"]["param"]) == (400, "base_model_name")
        assert (await server.post("/v1/load_lora_adapter", {"lora_name": "x"})).json()["error"]["param"] == "lora_path"


async def test_without_room_the_answer_says_how_to_have_some() -> None:
    async with serving(max_adapters=0) as (server, _):
        assert "--max-adapters" in (await load(server, "a")).json()["error"]["message"]


@pytest.mark.parametrize(("key", "status"), [(KEY, 403), (ADMIN, 200), (None, 401)])
async def test_only_admins_load_adapters(key: str | None, status: int) -> None:
    settings = ApiSettings(api_keys=parse_keys([KEY, f"boss:admin:{ADMIN}"]))
    async with serving(settings) as (server, _):
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        for path, body in (("load", {"lora_name": "a", "lora_path": "/a"}), ("unload", {"lora_name": "a"})):
            answer = await server.post(f"/v1/{path}_lora_adapter", body, headers=headers)
            assert answer.status_code == status
