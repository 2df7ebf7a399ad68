"""How many connections there may be, and answers to those for whom there is no request to answer."""

from __future__ import annotations

import resource
from typing import Any

from starlette.types import Receive, Scope, Send

from app.api.auth import OPEN_PATHS
from app.api.errors import error_response
from app.api.openai.errors import error_body
from app.errors import RequestError

PROBE_CONNECTIONS = 32
"""Connections beyond :data:`MAX_CONNECTIONS` that are open to probes alone."""
_OTHER_DESCRIPTORS = 96


def _most_connections() -> int:
    """As many as there are file descriptors for, next to the server's own; some 200 MB of idle ones at the most."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 1 << 14
    return most if descriptors < 0 else max(1, min(most, descriptors - PROBE_CONNECTIONS - _OTHER_DESCRIPTORS))


MAX_CONNECTIONS = _most_connections()
"""Connections at one time. For another one an idle one is closed; where none is idle, it is good for probes alone."""
_PHRASES = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


def bare_answer(error: RequestError) -> bytes:
    """The whole HTTP answer, after which the connection ends."""
    body = error_body(error)
    head = (
        f"HTTP/1.1 {error.status} {_PHRASES[error.status]}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


def probes_alone(app: Any) -> Any:
    """``app`` for probes; all else is answered 429. An ASGI application, whose type servers spell in their own ways."""

    async def for_probes(scope: Scope, receive: Receive, send: Send) -> None:
        is_probe = scope["path"] in OPEN_PATHS
        await (app if is_probe else error_response(_too_many_connections(), scope))(scope, receive, send)

    return for_probes


def _too_many_connections() -> RequestError:
    return RequestError(
        "The server is overloaded: it has as many connections as it takes.",
        status=429,
        type="overloaded_error",
        code="overloaded",
        retry_after=1.0,
    )
