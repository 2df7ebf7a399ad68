"""Errors in the shape of the Messages protocol."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from app.api.anthropic.schemas.answers import AnthropicError, AnthropicErrorDetail, ErrorCode
from app.errors import RequestError
from app.telemetry.logs import bound_request_id

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
NO_THREADS = "thread_unsupported_request"
"""Code by which clients know that they have to send whole conversations."""
EVENT = b"event: error\ndata: %b\n\n"


def write_error(error: RequestError) -> tuple[int, bytes]:
    """Status and JSON of an error."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 499 else "api_error")
    message = error.message
    if error.code == "context_length_exceeded":
        message = f"prompt is too long: {message}"  # clients know it by these words
    details: ErrorCode | UnsetType = UNSET
    if error.code == NO_THREADS:
        details = ErrorCode(error_code=NO_THREADS, unsupported=[error.param or ""])
    body = AnthropicError(AnthropicErrorDetail(kind, message, details), bound_request_id())
    return error.status, msgspec.json.encode(body)


def error_event(error: RequestError) -> bytes:
    """An error as the last event of a stream."""
    return EVENT % write_error(error)[1]
