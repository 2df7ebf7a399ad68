"""Answers in JSON, encoded by msgspec: no second validation of what the server itself made."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

_encoder = msgspec.json.Encoder()


def encode(content: msgspec.Struct) -> bytes:
    """JSON of a wire struct."""
    return _encoder.encode(content)


def json_response(content: msgspec.Struct, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response whose body is a wire struct."""
    return Response(encode(content), status, headers, "application/json")
