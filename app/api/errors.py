"""Errors in the OpenAI shape: status, body, ``Retry-After``, ``x-should-retry``."""

from __future__ import annotations

import math

import msgspec
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from app.api.schemas.errors import ErrorDetail, ErrorResponse
from app.serving.errors import RequestError

CLIENT_CLOSED_REQUEST = 499
"""Status in metrics and logs for a client that left before its answer began; nobody receives it."""
_MAX_SHOWN_PATH = 200
_HTTP_CODES = {404: "unknown_url", 405: "method_not_allowed"}


def error_body(error: RequestError) -> bytes:
    """JSON of an error, for a response or for the last event of a stream."""
    detail = ErrorDetail(message=error.message, type=error.type, param=error.param, code=error.code)
    return msgspec.json.encode(ErrorResponse(detail))


def error_response(error: RequestError) -> Response:
    """The HTTP answer to a request that failed before its answer began."""
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if error.status == 500:
        # The same request would fail the same way: SDKs retry a 500 twice unless told not to.
        headers["x-should-retry"] = "false"
    return Response(error_body(error), error.status, headers, "application/json")


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


async def _request_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestError):
        raise error
    return error_response(error)


async def _http_exception(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    path = request.url.path[:_MAX_SHOWN_PATH]
    messages = {404: f"There is no route {path}.", 405: f"{path} does not answer {request.method}."}
    response = error_response(
        RequestError(
            messages.get(error.status_code, str(error.detail)),
            status=error.status_code,
            code=_HTTP_CODES.get(error.status_code),
        )
    )
    response.headers.update(error.headers or {})
    return response


async def _client_disconnect(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)
