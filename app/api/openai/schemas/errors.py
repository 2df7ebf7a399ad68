"""The one shape of every error."""

from __future__ import annotations

import msgspec


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong."""

    message: str
    type: str
    """``invalid_request_error``, ``overloaded_error``, ``server_error``, …"""
    param: str | None = None
    """The request field at fault."""
    code: str | None = None
    """For programs: ``model_not_found``, ``context_length_exceeded``, ``overloaded``, …"""


class ErrorResponse(msgspec.Struct, frozen=True):
    """Body of every answer that is not a success; also the last event of a stream that failed."""

    error: ErrorDetail
