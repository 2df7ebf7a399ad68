"""Errors: ``Retry-After``, ``x-should-retry``, the status and body of the protocol that the path belongs to, and a log
line of what was refused."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import structlog
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Scope

from app.api.protocols import protocol_of
from app.api.scope import is_in_ledger, route_path, shown
from app.errors import RequestError
from app.nearest import did_you_mean

CLIENT_CLOSED_REQUEST = 499
"""Status in metrics and logs for a client that left before its answer began; nobody receives it."""
_MAX_SHOWN_PATH = 200
_LIKE_A_PATH = 0.8
"""Likeness of a path that may have been meant: all paths have much in common."""
_HTTP_CODES = {404: "unknown_url", 405: "method_not_allowed"}

_log = structlog.get_logger("tuili.api")


def error_response(error: RequestError, scope: Scope) -> Response:
    """The HTTP answer to a request that failed before its answer began.

    Leaves a log line, unless another one tells of the failure: the ledger's, or the traceback of a fault.
    """
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if error.status == 500:
        # The same request would fail the same way: SDKs retry a 500 twice unless told not to.
        headers["x-should-retry"] = "false"
    status, body = protocol_of(scope["path"]).write_error(error)
    log_refusal(error, status, scope)
    return Response(body, status, headers, "application/json")


def log_refusal(error: RequestError, status: int, scope: Scope) -> None:
    """Leaves a log line on a request that failed, unless another one tells of the failure."""
    if error.status != 500 and not is_in_ledger(scope):
        endpoint = route_path(scope) or shown(scope["path"])
        param = error.param and shown(error.param)
        _log.info("request refused", endpoint=endpoint, status=status, error_code=error.code, param=param)


def internal_error(request_id: str) -> RequestError:
    """What a client is told of a fault in the server: nothing of its inside, but how to find it in the log."""
    return RequestError(
        f"The server failed to process the request. Its log says more under request id {request_id}.",
        status=500,
        type="server_error",
        code="internal_error",
    )


def install_error_handlers(app: FastAPI) -> None:
    """Gives refusals, unknown routes and wrong methods the one error shape."""
    app.add_exception_handler(RequestError, _request_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(ClientDisconnect, _client_disconnect)


async def _request_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestError):
        raise error
    return error_response(error, request.scope)


async def _http_exception(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    path = request.scope["path"][:_MAX_SHOWN_PATH]  # the URL's would be what the Host header makes of it
    message, methods = str(error.detail), ""
    if error.status_code == 404:
        near = did_you_mean(path, _known_paths(request.app.routes), likeness=_LIKE_A_PATH)
        message = f"There is no route {path}{near}; /docs lists all that there are."
    elif error.status_code == 405:
        # The router names the methods of the first route alone that has this path.
        route = request.scope.get("route")
        methods = ", ".join(sorted(_methods(request.app.routes, route.path))) if route is not None else ""
        message = f"{path} does not answer {request.method}" + (f", but {methods}." if methods else ".")
    refusal = RequestError(message, status=error.status_code, code=_HTTP_CODES.get(error.status_code))
    response = error_response(refusal, request.scope)
    response.headers.update(error.headers or {})
    if methods:
        response.headers["allow"] = methods
    return response


def _known_paths(routes: Iterable[BaseRoute]) -> list[str]:
    """Paths of the documented routes, each up to its first parameter."""
    found = [route.path.partition("{")[0] for route in _all(routes) if route.include_in_schema]
    return list(dict.fromkeys(found))


def _methods(routes: Iterable[BaseRoute], path: str) -> set[str]:
    """Methods of all routes with a path."""
    found = {method for route in _all(routes) if route.path == path for method in route.methods or ()}
    return found | {"HEAD"} if "GET" in found else found


def _all(routes: Iterable[BaseRoute]) -> Iterator[Route]:
    """All routes. Newer FastAPI keeps included routers whole."""
    for route in routes:
        if isinstance(route, Route):
            yield route
        elif (router := getattr(route, "original_router", None)) is not None:
            yield from _all(router.routes)


async def _client_disconnect(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)
