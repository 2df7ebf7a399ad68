"""Answers in JSON, encoded by msgspec: no second validation of what the server itself made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pydantic_core
from starlette.responses import Response

LOWEST = -9999.0
"""Stands for a log-probability of minus infinity, which JSON does not have; as at OpenAI."""
_encoder = msgspec.json.Encoder()

Content = msgspec.Struct | Sequence[msgspec.Struct]


def encode(content: Content) -> bytes:
    """JSON of a wire struct, or of several."""
    return _encoder.encode(content)


def json_response(content: Content, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response whose body is a wire struct, or a list of them."""
    return Response(encode(content), status, headers, "application/json")


def finite(logprob: float | None) -> float:
    """A log-probability as JSON can carry it."""
    return LOWEST if logprob is None else max(logprob, LOWEST)


def arguments_object(arguments: str) -> dict[str, Any]:
    """A tool call's arguments, for protocols in which they are an object. Of those that were cut short as much as is
    whole, which is what Anthropic's SDK makes of them too."""
    try:
        value = pydantic_core.from_json(arguments, allow_partial=True) if arguments.strip() else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
