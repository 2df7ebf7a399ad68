"""Errors in the shape of the OpenAI protocol, which is that of every route without a protocol too."""

from __future__ import annotations

import msgspec

from app.api.openai.schemas.errors import ErrorDetail, ErrorResponse
from app.api.sse import DATA_EVENT
from app.errors import RequestError


def error_body(error: RequestError) -> bytes:
    """JSON of an error."""
    detail = ErrorDetail(message=error.message, type=error.type, param=error.param, code=error.code)
    return msgspec.json.encode(ErrorResponse(detail))


def write_error(error: RequestError) -> tuple[int, bytes]:
    """Status and JSON of an error."""
    return error.status, error_body(error)


def error_event(error: RequestError) -> bytes:
    """An error as the last event of a stream."""
    return DATA_EVENT % error_body(error)
