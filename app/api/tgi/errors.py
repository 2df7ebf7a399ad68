"""Errors in the shape of text-generation-inference."""

from __future__ import annotations

import msgspec

from app.api.tgi.schemas import FlatError
from app.api.tgi.writer import EVENT
from app.errors import RequestError

_KINDS = {401: "authentication", 403: "permission", 429: "overloaded"}
_FAILURES = frozenset({"engine_error", "engine_restarted", "request_cancelled", "slow_consumer", "deadline_exceeded"})
"""Codes of requests that failed once they were admitted."""


def write_error(error: RequestError) -> tuple[int, bytes]:
    """Status and JSON of an error."""
    status, kind = error.status, "validation"
    if error.status in _KINDS:
        kind = _KINDS[error.status]
    elif error.code == "internal_error":
        kind = "internal"
    elif (error.code or "").startswith("engine_") and error.code not in _FAILURES:
        kind = "unavailable"  # loading, draining or dead: nothing was generated
    elif error.code in _FAILURES or error.status >= 500:
        status, kind = 424, "generation"
    elif error.status in (400, 404) and error.code != "unknown_url":
        status = 422
    return status, msgspec.json.encode(FlatError(error.message, kind))


def error_event(error: RequestError) -> bytes:
    """An error as the last event of a stream."""
    return EVENT % write_error(error)[1]
