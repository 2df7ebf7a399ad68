"""Errors in the shape of this protocol, which is that of OpenAI's others."""

from __future__ import annotations

import msgspec

from app.api.responses.schemas.answer import ResponsesError, ResponsesErrorDetail
from app.api.sse import DATA_EVENT
from app.errors import RequestError


def error_detail(error: RequestError) -> ResponsesErrorDetail:
    """What went wrong."""
    return ResponsesErrorDetail(message=error.message, type=error.type, param=error.param, code=error.code)


def write_error(error: RequestError) -> tuple[int, bytes]:
    """Status and JSON of an error."""
    return error.status, msgspec.json.encode(ResponsesError(error_detail(error)))


def error_event(error: RequestError) -> bytes:
    """An error as the last event of a stream."""
    return DATA_EVENT % write_error(error)[1]


def not_found(response_id: str, *, status: int = 404, param: str | None = None) -> RequestError:
    """The refusal of an id under which the client has no answer.

    Args:
        param: the request field that has the id.
    """
    code = "response_not_found" if param is None else "previous_response_not_found"
    message = f"There is no response {response_id[:128]!r} of yours that is kept, or it is no longer."
    if param is not None:
        message = f"{param}: t{message[1:]}"
    return RequestError(message, status=status, code=code, param=param)


def unavailable(reason: Exception) -> RequestError:
    """The refusal of what cannot be looked up at present."""
    message = f"The kept responses cannot be read: {reason}."
    return RequestError(message, status=503, type="server_error", code="store_unavailable", retry_after=1.0)
