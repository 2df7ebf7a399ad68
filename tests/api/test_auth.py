"""API keys: what needs one, which scope opens what, and that no spelling of a request gets around it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Route

from app.api.anthropic.protocol import ANTHROPIC
from app.api.app import create_app
from app.api.auth import OPEN_PATHS
from app.api.ollama.protocol import OLLAMA
from app.api.protocols import protocol_of
from app.api.service import ApiSettings
from app.api.tgi.protocol import TGI
from app.keys import parse_keys
from app.telemetry.logs import configure_logging
from tests.api.conftest import Server, start_server
from tests.serving.rig import until

INFER, METRICS, ADMIN, SECOND = (
    "infer-key-0123456789",
    "metrics-key-0123456789",
    "admin-key-0123456789",
    "second-0123456789",
)
KEYS = parse_keys(
    [f"alice:infer:{INFER}", f"prometheus:metrics:{METRICS}", f"root:admin:{ADMIN}", f"bob:infer:{SECOND}"]
)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
async def locked() -> AsyncIterator[Server]:
    """A server with keys."""
    async with start_server(ApiSettings(api_keys=KEYS)) as server:
        yield server


def _flat(routes: Iterable[BaseRoute]) -> Iterable[Route | APIRoute]:
    for route in routes:
        if isinstance(route, Route | APIRoute):
            yield route
        else:  # newer FastAPI keeps included routers whole
            yield from _flat(route.original_router.routes)  # type: ignore[attr-defined]


def registered(server: Server) -> dict[str, set[str]]:
    """Every path the application answers, parameters filled in, with its methods."""
    paths: dict[str, set[str]] = {}
    for route in _flat(create_app(server.service).routes):
        path = re.sub(r"\{\w+(:path)?\}", "x", route.path)
        paths.setdefault(path, set()).update(route.methods or ())
    return paths


def reason(path: str, answer: httpx.Response) -> str:
    """What an error says of its kind, in the shape of the path's protocol."""
    body = answer.json()
    match protocol_of(path).tag:
        case TGI.tag:
            assert set(body) == {"error", "error_type"}
            return str(body["error_type"])
        case OLLAMA.tag:
            assert set(body) == {"error"}
            return "key" if "key" in body["error"] else str(body["error"])
        case ANTHROPIC.tag:
            assert (body["type"], set(body["error"])) == ("error", {"type", "message"})
            return str(body["error"]["type"])
        case _:
            assert set(body["error"]) == {"message", "type", "param", "code"}
            return str(body["error"]["code"])


def reason_of(code: str, kind: str, path: str) -> str:
    """A kind of error as the path's protocol has it, by OpenAI's code and by TGI's type."""
    words = {TGI.tag: kind, OLLAMA.tag: "key", ANTHROPIC.tag: f"{kind}_error"}
    return words.get(protocol_of(path).tag, code)


async def test_every_route_but_the_probes_needs_a_key(locked: Server) -> None:
    paths = registered(locked)
    assert {"/v1/chat/completions", "/metrics", "/docs", "/openapi.json", *OPEN_PATHS} <= set(paths)
    paths.pop("/docs")  # tests/api/page has what the pages show to whom
    for path in [*paths, "/no/such/route", "/v1", "/metrics/"]:
        for method in METHODS:
            answer = await locked.http.request(method, path)
            if path in OPEN_PATHS:
                assert answer.status_code == (200 if method in ("GET", "HEAD") else 405)
                continue
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["x-request-id"]
            if method == "HEAD":
                continue
            assert reason(path, answer) == reason_of("missing_api_key", "authentication", path)


SCOPES = {
    "/metrics": METRICS,
    "/v1/load_lora_adapter": ADMIN,
    "/v1/unload_lora_adapter": ADMIN,
    "/docs": None,
    "/openapi.json": None,
    "/page/x": None,
}
"""The key that a route needs, besides the administrator's; ``INFER`` for all others."""


async def test_each_route_opens_to_its_scope_alone(locked: Server) -> None:
    for path, methods in registered(locked).items():
        needed = SCOPES.get(path, INFER)
        for method in methods:
            for key in (INFER, METRICS, ADMIN):
                async with locked.http.stream(method, path, headers=bearer(key)) as answer:
                    if path != "/v1/engine/live" or answer.is_error:  # the one answer without an end of its own
                        await answer.aread()
                allowed = path in OPEN_PATHS or needed is None or key in (needed, ADMIN)
                assert (answer.status_code == 403) != allowed, (method, path, key)
                assert answer.status_code not in (401, 500)
                if allowed or method == "HEAD":
                    continue
                assert reason(path, answer) == reason_of("insufficient_scope", "permission", path)


async def test_unknown_paths_are_404_only_with_a_key(locked: Server) -> None:
    for key in (INFER, METRICS, ADMIN):
        assert (await locked.http.get("/no/such/route", headers=bearer(key))).status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {INFER}"},
        {"Authorization": f"bearer   {INFER}"},
        {"X-Api-Key": INFER},
        {"Authorization": "Basic YTpi", "X-Api-Key": INFER},
    ],
)
async def test_ways_to_bring_a_key(locked: Server, headers: dict[str, str]) -> None:
    assert (await locked.http.get("/v1/models", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": INFER},
        {"Authorization": f"Basic {INFER}"},
        {"Authorization": f"Bearer {INFER}x"},
        {"Authorization": f"Bearer {INFER[:-1]}"},
        {"Authorization": f"Bearer {INFER.upper()}"},
        {"Authorization": f"Bearer {INFER} {INFER}"},
        {"Authorization": "Bearer wrong", "X-Api-Key": INFER},
        {"Authorization": "Bearer schlüssel".encode()},
        {"Authorization": b"Bearer \xff\xfe\x80"},
        {"X-Api-Key": "ключ".encode()},
        {"X-Api-Key": ""},
        {"Cookie": f"api_key={INFER}"},
    ],
)
async def test_wrong_keys_are_401(locked: Server, headers: dict[str, Any]) -> None:
    answer = await locked.http.get("/v1/models", headers=headers)
    assert answer.status_code == 401
    assert INFER not in answer.text
    assert (await locked.http.get("/v1/models", params={"api_key": INFER}, headers=headers)).status_code == 401
    flat = await locked.http.get("/info", headers=headers)
    assert (flat.status_code, set(flat.json())) == (401, {"error", "error_type"})


async def test_the_openai_sdk_brings_its_key(locked: Server) -> None:
    sdk = locked.openai.with_options(api_key=INFER)
    assert (await sdk.completions.create(model="fake-model", prompt="x", max_tokens=2)).usage is not None


async def _raw(server: Server, head: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(head)
    async with asyncio.timeout(20):
        answer = await reader.read(65536)
    writer.close()
    await writer.wait_closed()
    return answer


TARGETS = [
    b"//v1/models",
    b"/v1//models",
    b"///livez/../v1/models",
    b"/livez/../v1/models",
    b"/livez/..%2fv1/models",
    b"/livez%2f..%2fv1%2fmodels",
    b"/livez/",
    b"//livez",
    b"/livez%00",
    b"/livez%0a",
    b"/livez;/v1/models",
    b"/LIVEZ",
    b"/V1/models",
    b"/%76%31/models",
    b"/v1%2fmodels",
    b"/v1/%6dodels",
    b"/v1/models?/livez",
    b"/v1/models#/livez",
    b"/metrics%0a",
    b"/./metrics",
    b"/%2e/metrics",
    b"/\xe2\x80\xa4/metrics",
    b"http://localhost/v1/models",
    b"http://localhost/metrics",
    b"http://localhost//livez",
    b"http://livez/v1/models",
    b"https://user:password@livez/livez/../metrics",
    b"http://localhost",
    b"*",
    b"livez",
    b"localhost:80",
]
HEADERS = [
    b"Host: /livez",
    b"Host: localhost/livez?",
    b"Host: \xff",
    b"Host: [",
    b"Host: livez:99999",
    b"Host: x/../livez#",
    b"Host: x\r\nHost: y",
    b"",
    b"Host: x\r\nX-Forwarded-Prefix: /livez\r\nX-Original-URL: /livez\r\nX-Rewrite-URL: /livez",
    b"Host: x\r\nX-HTTP-Method-Override: GET",
    b"Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==",
    b"Host: x\r\nOrigin: http://localhost\r\nAccess-Control-Request-Method: POST",
]


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"CONNECT", b"POST"])
async def test_no_spelling_of_a_target_slips_past(locked: Server, method: bytes) -> None:
    for target in TARGETS:
        head = method + b" " + target + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        answer = await _raw(locked, head)
        # 400: what the parser takes for no request at all.
        assert answer.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 400 ")), (target, answer[:200])


@pytest.mark.parametrize("method", [b"GET", b"OPTIONS"])
async def test_no_header_slips_past(locked: Server, method: bytes) -> None:
    for headers in HEADERS:
        answer = await _raw(locked, method + b" /v1/models HTTP/1.1\r\n" + headers + b"\r\nConnection: close\r\n\r\n")
        assert answer.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 400 ")), (headers, answer[:200])


async def test_the_raw_client_gets_through_with_a_key(locked: Server) -> None:
    head = b"GET http://other/v1/%6dodels HTTP/1.1\r\nHost: x\r\nX-Api-Key: " + INFER.encode()
    assert (await _raw(locked, head + b"\r\nConnection: close\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("host", [b"localhost/livez?", b"[", b"x/../livez#"])
async def test_the_host_has_no_say_in_the_shape_of_an_error(locked: Server, host: bytes) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: " + host + b"\r\nX-Api-Key: " + INFER.encode()
    rest = b"\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    flat = await _raw(locked, head % b"/generate" + rest)
    assert flat.startswith(b"HTTP/1.1 422 ")
    assert b'"error_type":"validation"' in flat
    assert (await _raw(locked, head % b"/v1/completions" + rest)).startswith(b"HTTP/1.1 400 ")
    missing = await _raw(locked, head % b"/v1/none" + rest)
    assert missing.startswith(b"HTTP/1.1 404 ")
    assert b"no route /v1/none" in missing


async def test_a_pipelined_request_does_not_inherit_the_key_before_it(locked: Server) -> None:
    first = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n" % INFER.encode()
    second = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    reader, writer = await asyncio.open_connection(*locked.address)
    writer.write(first + second)
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"401"]


async def test_a_large_body_without_a_key_is_not_read_into_the_application() -> None:
    async with start_server(ApiSettings(api_keys=KEYS, max_body_bytes=100)) as server:
        assert (await server.post("/v1/completions", {"prompt": "x" * 1000})).status_code == 401
        answer = await server.post("/v1/completions", {"prompt": "x" * 1000}, headers=bearer(INFER))
        assert answer.status_code == 413


async def _cached(server: Server, headers: dict[str, str], **body: Any) -> int:
    asked = {"prompt": "a" * 100, "max_tokens": 1, **body}
    answer = await server.post("/v1/completions", asked, headers=headers)
    assert answer.status_code == 200, answer.text
    cached: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached


async def test_keys_do_not_share_cached_prefixes(locked: Server) -> None:
    alice, bob = bearer(INFER), bearer(SECOND)
    assert await _cached(locked, alice) == 0
    assert await _cached(locked, alice) > 0
    assert await _cached(locked, bob) == 0
    assert await _cached(locked, bob) > 0
    assert await _cached(locked, alice, cache_salt="mine") == 0
    assert await _cached(locked, alice, cache_salt="mine") > 0
    assert await _cached(locked, bob, cache_salt="mine") == 0


async def test_without_keys_everybody_shares_prefixes(server: Server) -> None:
    assert await _cached(server, {}) == 0
    assert await _cached(server, bearer("anything")) > 0


async def test_browsers_are_let_in_only_where_told() -> None:
    origin = "https://a.example"
    ahead = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    async with start_server() as server:
        answer = await server.http.get("/v1/models", headers={"Origin": origin})
        assert not [name for name in answer.headers if name.startswith("access-control")]
    async with start_server(ApiSettings(api_keys=KEYS, cors_origins=(origin,))) as server:

        def allowed(answer: httpx.Response) -> object:
            return answer.headers.get("access-control-allow-origin")

        preflight = await server.http.options("/v1/models", headers=ahead)
        assert (preflight.status_code, allowed(preflight)) == (200, origin)
        assert preflight.headers["access-control-allow-headers"] == "authorization"
        other = await server.http.options("/v1/models", headers={**ahead, "Origin": "https://b.example"})
        assert (other.status_code, allowed(other)) == (400, None)
        refused = await server.http.get("/v1/models", headers={"Origin": origin})
        assert (refused.status_code, allowed(refused)) == (401, origin)
        answered = await server.http.get("/v1/models", headers={"Origin": origin, **bearer(INFER)})
        assert (answered.status_code, allowed(answered)) == (200, origin)
        assert (await server.http.options("/v1/models", headers={"Origin": origin})).status_code == 401


async def test_requests_are_found_and_cancelled_by_their_own_key_or_an_admin() -> None:
    async with start_server(ApiSettings(api_keys=KEYS), delay=0.005) as server:
        body = {"prompt": "x", "max_tokens": 400}
        headers = {"X-Request-Id": "same"}
        of_alice = asyncio.create_task(server.post("/v1/completions", body, headers={**headers, **bearer(INFER)}))
        await until(lambda: server.rig.client.in_flight == 1)
        for method in ("GET", "DELETE"):
            hidden = await server.http.request(method, "/v1/requests/same", headers=bearer(SECOND))
            assert hidden.status_code == 404
        assert (await server.http.get("/v1/requests/same", headers=bearer(INFER))).json()["status"] != "cancelled"
        of_bob = await server.post("/v1/completions", {**body, "max_tokens": 3}, headers={**headers, **bearer(SECOND)})
        assert of_bob.status_code == 200
        ended = await server.http.get("/v1/requests/cmpl-same", headers=bearer(SECOND))
        assert ended.json()["status"] == "finished"
        cancelled = await server.http.delete("/v1/requests/same", headers=bearer(ADMIN))
        assert cancelled.json()["status"] == "cancelled"
        assert (await of_alice).status_code == 499


async def test_the_log_names_the_key_and_never_shows_it(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    async with start_server(ApiSettings(api_keys=KEYS)) as server:
        for stream in (False, True):
            asked = {"prompt": "x", "max_tokens": 2, "stream": stream}
            await server.post("/v1/completions", asked, headers=bearer(INFER))
        await server.post("/v1/completions", asked, headers=bearer("wrong-" + INFER))
    text = capfd.readouterr().err
    lines = [json.loads(line) for line in text.splitlines() if '"request"' in line]
    assert [line["api_key"] for line in lines] == ["alice", "alice"]
    (refused,) = [json.loads(line) for line in text.splitlines() if '"request refused"' in line]
    assert (refused["status"], refused["error_code"]) == (401, "invalid_api_key")
    assert refused["endpoint"] == "/v1/completions"
    assert refused["request_id"]
    assert INFER not in text


async def test_a_time_limit_that_passes_in_the_queue_is_504() -> None:
    async with start_server(delay=0.005, max_num_seqs=1) as server:
        running = asyncio.create_task(server.post("/v1/completions", {"prompt": "x", "max_tokens": 400}))
        await until(lambda: server.rig.client.stats.num_running == 1)
        bodies: list[tuple[str, dict[str, Any]]] = [
            ("/v1/completions", {"prompt": "y"}),
            ("/v1/completions", {"prompt": "y", "stream": True}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "y"}]}),
        ]
        for path, body in bodies:
            answer = await server.post(path, {**body, "max_tokens": 5, "timeout": 0.3})
            assert answer.status_code == 504
            assert answer.json()["error"]["code"] == "deadline_exceeded"
        records = server.rig.ledger.records
        assert [record.generated_tokens for record in records] == [0, 0, 0]  # never prefilled
        assert (await running).status_code == 200


async def test_the_server_caps_a_time_limit() -> None:
    async with start_server(ApiSettings(default_timeout=0.05), delay=0.01) as server:
        asked = {"prompt": "x", "max_tokens": 400, "timeout": 1000}
        answer = await server.post("/v1/completions", asked)
        assert answer.status_code == 504
