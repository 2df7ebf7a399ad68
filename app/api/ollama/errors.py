"""Errors in the shape of Ollama's protocol."""

from __future__ import annotations

import msgspec

from app.api.ollama.schemas.answers import OllamaError
from app.errors import RequestError


def write_error(error: RequestError) -> tuple[int, bytes]:
    """Status and JSON of an error."""
    return error.status, msgspec.json.encode(OllamaError(error.message))


def error_event(error: RequestError) -> bytes:
    """An error as the last line of a stream."""
    return write_error(error)[1] + b"\n"
