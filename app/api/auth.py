"""Who may ask for what: API keys and their scopes.

That a key is needed is decided around the whole application, in pure ASGI: a route cannot forget it, and paths that
lead nowhere need one as well. Which scope it needs is said where a room's routes are included.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import Depends
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.caller import caller, note_caller
from app.api.errors import error_response
from app.errors import RequestError
from app.keys import ApiKey, KeyScope, digest
from app.telemetry.logs import bind_api_key

OPEN_PATHS = frozenset({"/livez", "/readyz", "/startupz", "/health", "/ping"})
"""The probes: orchestrators ask them without a key."""

_BEARER = b"bearer "


def needs(scope: KeyScope) -> Any:
    """A dependency of routes that only keys with ``scope`` may ask; without any keys everybody may."""

    async def check() -> None:
        key = caller()
        if key is not None and not key.allows(scope):
            message = f"The API key lacks the scope {scope}."
            raise RequestError(message, status=403, type="permission_error", code="insufficient_scope")

    return Depends(check)


class AuthMiddleware:
    """Lets through what brings one of ``keys``, asks a probe, or ``is_open`` by its scope."""

    def __init__(self, app: ASGIApp, keys: Sequence[ApiKey], is_open: Callable[[Scope], bool] | None = None) -> None:
        self._app = app
        self._keys = keys
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forwards, or answers 401 itself."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        key = None
        if scope["path"] not in OPEN_PATHS:
            given = _given_key(scope)
            key = None if given is None else self._find(given)
            if key is None and not (self._is_open and self._is_open(scope)):
                await _unauthorised(scope, was_given=given is not None)(scope, receive, send)
                return
        # Always set: a pipelined request inherits the context of the one before it.
        note_caller(key)
        bind_api_key(None if key is None else key.name)
        await self._app(scope, receive, send)

    def _find(self, given: bytes) -> ApiKey | None:
        """Compares with every key: the time it takes does not tell where one matched."""
        given_digest = digest(given)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, given_digest):
                found = key
        return found


def _unauthorised(scope: Scope, *, was_given: bool) -> Response:
    error = RequestError(
        "The API key is not valid." if was_given else "An API key is needed: send it as 'Authorization: Bearer KEY'.",
        status=401,
        type="authentication_error",
        code="invalid_api_key" if was_given else "missing_api_key",
    )
    response = error_response(error, scope)
    response.headers["www-authenticate"] = "Bearer"
    return response


def _given_key(scope: Scope) -> bytes | None:
    """The bytes of the key that a request brings: a header may hold any."""
    headers = Headers(scope=scope)
    for name, value in headers.raw:
        if name == b"authorization" and value[: len(_BEARER)].lower() == _BEARER:
            return value[len(_BEARER) :].strip()
    return next((value for name, value in headers.raw if name == b"x-api-key"), None)
