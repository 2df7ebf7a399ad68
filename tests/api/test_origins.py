"""What pages of strangers can make a server do that needs no key: nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.keys import parse_keys
from app.serve.compose import api_settings
from app.settings import Settings
from tests.api.conftest import Server, start_server

KEY = "some-key-0123456789"
COMPLETIONS = "/v1/completions"
BODY = b'{"prompt": "a", "max_tokens": 1}'
JSON = {"content-type": "application/json"}


@contextlib.asynccontextmanager
async def started(*, on_loopback: bool = True, **settings: object) -> AsyncIterator[Server]:
    """A server with the limits of one that ``tuili serve`` starts without keys."""
    async with start_server(api_settings(Settings.model_validate(settings), on_loopback=on_loopback)) as server:
        yield server


async def ask(server: Server, headers: dict[str, str], path: str = COMPLETIONS) -> httpx.Response:
    return await server.http.post(path, content=BODY, headers=headers)


def code_of(answer: httpx.Response) -> str:
    code: str = answer.json()["error"]["code"]
    return code


@pytest.fixture
async def local() -> AsyncIterator[Server]:
    async with started() as server:
        yield server


@pytest.mark.parametrize("content_type", ["text/plain;charset=UTF-8", "application/x-www-form-urlencoded", None])
async def test_programs_need_no_headers(local: Server, content_type: str | None) -> None:
    """``curl -d``, scripts, and clients of other servers."""
    answer = await ask(local, {"content-type": content_type} if content_type else {})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://6.6.6.6:8000", "http://localhost.evil.example", "null"]
)
@pytest.mark.parametrize("content_type", ["text/plain", "application/json"])
async def test_pages_of_strangers_are_403(local: Server, origin: str, content_type: str) -> None:
    for path in (COMPLETIONS, "/v1/chat/completions", "/tokenize", "/v1/nowhere"):
        answer = await ask(local, {"origin": origin, "content-type": content_type}, path)
        assert (answer.status_code, code_of(answer)) == (403, "foreign_origin"), path
    flat = await ask(local, {"origin": origin, "content-type": content_type}, "/generate")
    assert (flat.status_code, flat.json()["error_type"]) == (403, "permission")
    assert (await local.http.get("/v1/models", headers={"origin": origin})).status_code == 403
    assert (await local.http.delete("/v1/requests/x", headers={"origin": origin})).status_code == 403
    assert local.rig.ledger.records == []


@pytest.mark.parametrize(
    "origin",
    ["http://localhost:3000", "http://127.0.0.1", "http://[::1]:3000", "https://app.localhost", "vscode-webview://abc"],
)
async def test_pages_and_programs_of_this_machine_may_call(local: Server, origin: str) -> None:
    assert (await ask(local, {"origin": origin, **JSON})).status_code == 200
    assert (await ask(local, {"origin": origin, "content-type": "application/json; charset=utf-8"})).status_code == 200


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", None])
async def test_pages_must_call_json_json(local: Server, content_type: str | None) -> None:
    """What a page may send without asking the server first is never taken, wherever the page is from."""
    headers = {"origin": "http://localhost:3000"} | ({"content-type": content_type} if content_type else {})
    answer = await ask(local, headers)
    assert (answer.status_code, code_of(answer)) == (415, "unsupported_media_type")
    flat = await ask(local, headers, "/generate")
    assert (flat.status_code, set(flat.json())) == (415, {"error", "error_type"})


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost@evil.example", "a b"]
)
async def test_names_of_strangers_are_403(local: Server, host: str) -> None:
    """A page whose name was made to lead here by DNS is of the same origin as the server."""
    origin = {"origin": f"http://{host}"}
    for headers in ({}, origin):
        answer = await ask(local, {"host": host, **JSON, **headers})
        assert (answer.status_code, code_of(answer)) == (403, "foreign_host")
        assert (await local.http.get("/v1/models", headers={"host": host, **headers})).status_code == 403
    assert (await local.http.get("/livez", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "localhost.",
        "127.0.0.1:1",
        "[::1]:8000",
        "192.168.1.5",
        "host.docker.internal:8000",
        "box",
    ],
)
async def test_names_that_nobody_can_register_may_be_used(local: Server, host: str) -> None:
    assert (await ask(local, {"host": host})).status_code == 200


async def test_hosts_and_origins_may_be_allowed() -> None:
    settings: dict[str, Any] = {"allowed_hosts": "models.example", "cors_origins": "https://app.example"}
    async with started(**settings) as server:
        assert (await ask(server, {"host": "models.example:80"})).status_code == 200
        assert (await ask(server, {"host": "other.example"})).status_code == 403
        for origin in ("https://app.example", "https://models.example"):
            assert (await ask(server, {"origin": origin, **JSON})).status_code == 200
            assert (await ask(server, {"origin": origin, "content-type": "text/plain"})).status_code == 415
        assert (await ask(server, {"origin": "https://app.example:444", **JSON})).status_code == 403
    async with started(allowed_hosts="*", cors_origins="*") as server:
        assert (await ask(server, {"host": "any.example", "origin": "https://all.example", **JSON})).status_code == 200


async def test_servers_that_others_reach_have_any_name() -> None:
    """``--insecure``, as in a container: nobody knows by what names it is called, but pages of others are others'."""
    async with started(on_loopback=False) as server:
        own = {"host": "models.corp.example:8000"}
        assert (await ask(server, own)).status_code == 200
        assert (await ask(server, {**own, "origin": "http://models.corp.example:8000", **JSON})).status_code == 200
        assert (await ask(server, {**own, "origin": "https://evil.example", **JSON})).status_code == 403
    async with started(on_loopback=False, allowed_hosts="models.corp.example") as server:
        assert (await ask(server, own)).status_code == 200
        assert (await ask(server, {"host": "evil.example"})).status_code == 403


async def test_with_keys_the_key_alone_counts() -> None:
    settings = api_settings(Settings.model_validate({}), parse_keys([KEY]))
    async with start_server(settings) as server:
        foreign = {"host": "models.example", "origin": "https://evil.example", "content-type": "text/plain"}
        assert (await ask(server, foreign)).status_code == 401
        assert (await ask(server, {**foreign, "authorization": f"Bearer {KEY}"})).status_code == 200


async def test_without_a_host_is_no_browser(local: Server) -> None:
    reader, writer = await asyncio.open_connection(*local.address)
    writer.write(b"POST %s HTTP/1.0\r\ncontent-length: %d\r\n\r\n%s" % (COMPLETIONS.encode(), len(BODY), BODY))
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 200 ")
    assert json.loads(body)["object"] == "text_completion"
