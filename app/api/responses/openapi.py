"""The responses of this protocol's routes, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

import msgspec

from app.api.openapi import documented_answers
from app.api.responses.schemas.answer import ResponsesError

_NOT_FOUND = {404: "There is no such model or item, or no such response of the key that asks."}
_UNREADABLE = {503: "What is kept cannot be read; `Retry-After` says when to try again."}
_ERRORS = {
    400: "The request cannot be served; the message names the field.",
    403: "A page of a foreign origin asks, or by a foreign host, and the server needs no key.",
    **_NOT_FOUND,
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "The queue is full; `Retry-After` says when to try again.",
    499: "The request was cancelled.",
    500: "A fault of the server.",
    503: "Loading, draining, or without an engine or what is kept; `Retry-After` says when to try again.",
    504: "The request's time was up before it was done.",
}


def answers(whole: type[msgspec.Struct], event: type[msgspec.Struct] | None = None) -> dict[int | str, dict[str, Any]]:
    """A route's responses: the whole answer, the events of its stream if it has one, then its errors."""
    texts = _ERRORS if event is not None else {400: _ERRORS[400], **_NOT_FOUND, **_UNREADABLE}
    return documented_answers(ResponsesError, texts, whole=whole, event=event, last="[DONE]")
