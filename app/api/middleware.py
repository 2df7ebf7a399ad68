"""What surrounds every request: its id, its metrics, the last catch for faults, the bound on its body.

Plain ASGI throughout: Starlette's ``BaseHTTPMiddleware`` hides a client's leaving from the routes.
"""

from __future__ import annotations

import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import CLIENT_CLOSED_REQUEST, error_response, internal_error
from app.api.protocols import protocol_of
from app.api.scope import request_id, route_path
from app.errors import RequestError
from app.telemetry.logs import bind_request_id
from app.telemetry.metrics import Metrics

REQUEST_ID_HEADER = "x-request-id"
_SAFE_ID = re.compile(r"[A-Za-z0-9._:/+=@\-]{1,128}")
_UNMATCHED = "unmatched"
_UNVERSIONED = re.compile(
    r"/(?:chat/completions|completions|embeddings|messages(?:/count_tokens)?|models(?:/.*)?|responses(?:/.*)?)",
    re.DOTALL,
)
_MAX_LENGTH_DIGITS = 18
_SMALL_BODY = 64 << 10
_BODIES_RETRY_AFTER = 1.0

_log = structlog.get_logger("tuili.api")


class RequestIdMiddleware:
    """Takes the client's ``X-Request-Id`` if it is harmless, else makes one; every answer and log line carries it.

    The request's clock starts here.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forwards with ``scope["state"]["request_id"]`` set."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        value = given if _SAFE_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {}).update(request_id=value, arrival=time.monotonic())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = value
                if (name := protocol_of(scope["path"]).request_id_header) is not None:
                    headers[name] = value
            await send(message)

        bind_request_id(value)  # a server runs each request in a task of its own
        await self._app(scope, receive, send_with_id)


class VersionMiddleware:
    """Takes paths of OpenAI's and Anthropic's protocols without ``/v1`` for those with it: many a base URL lacks it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forwards, ``scope["path"]`` being the one of the route."""
        if scope["type"] == "http" and _UNVERSIONED.fullmatch(scope["path"]):
            scope["path"] = "/v1" + scope["path"]
        await self._app(scope, receive, send)


class HttpMetricsMiddleware:
    """Counts answers by route template, method and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forwards; a request whose client left before the answer counts as 499."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = CLIENT_CLOSED_REQUEST
        started = time.monotonic()

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noting_status)
        finally:
            route = route_path(scope) or _UNMATCHED
            seconds = time.monotonic() - started
            self._metrics.observe_http(route=route, method=scope["method"], status=status, seconds=seconds)


class FaultMiddleware:
    """Turns a fault of the server into a 500 that says nothing of its inside, and logs all of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forwards; a fault after the answer began goes on up, which cuts the connection."""
        started = False

        async def send_noting_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_noting_start)
        except Exception:
            if scope["type"] != "http" or started:
                raise
            _log.exception("request failed", path=scope["path"])
            await error_response(internal_error(request_id(scope)), scope)(scope, receive, send)


class BodyLimitMiddleware:
    """Bounds bodies, each and together.

    Args:
        max_bytes: most bytes of a body. Larger ones are refused with 413, by their declared length or as they come.
        max_bytes_together: most bytes of all requests' bodies, until their answers end. Small ones do not count and
            always pass; what would exceed it is refused with 429.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_bytes_together: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_bytes_together = max(max_bytes, max_bytes_together)
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forwards; reading past a limit raises in the route."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and (len(declared) > _MAX_LENGTH_DIGITS or int(declared) > self._max_bytes):
            # The connection stays open: the server drops the rest as it comes. Closing it now would reset it, and take
            # this answer from clients that read only once they have sent everything.
            await error_response(self._too_large(), scope)(scope, receive, send)
            return
        received = held = 0

        async def receive_counting() -> Message:
            nonlocal received, held
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large()
            if received > max(_SMALL_BODY, held):
                if self._held_bytes - held + received > self._max_bytes_together:
                    raise _too_many_bodies()
                self._held_bytes += received - held
                held = received
            return message

        try:
            await self._app(scope, receive_counting, send)
        finally:
            self._held_bytes -= held

    def _too_large(self) -> RequestError:
        return RequestError(f"The body is larger than {self._max_bytes} bytes.", status=413, code="request_too_large")


def _too_many_bodies() -> RequestError:
    return RequestError(
        "The server is overloaded: too many large bodies are under way.",
        status=429,
        type="overloaded_error",
        code="overloaded",
        retry_after=_BODIES_RETRY_AFTER,
    )
