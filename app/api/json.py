"""Answers in JSON, encoded by msgspec: no second validation of what the server itself made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from starlette.responses import Response

_encoder = msgspec.json.Encoder()


Content = msgspec.Struct | Sequence[msgspec.Struct]


def encode(content: Content) -> bytes:
    """JSON of a wire struct, or of several."""
    return _encoder.encode(content)


def json_response(content: Content, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response whose body is a wire struct, or a list of them."""
    return Response(encode(content), status, headers, "application/json")
