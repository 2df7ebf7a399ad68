"""Responses of routes whose errors have the shape of the OpenAI protocol, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from app.api.openai.schemas.errors import ErrorResponse
from app.api.openapi import documented_answers

_ERRORS = {
    400: "The request cannot be served; the message names the field.",
    403: "A page of a foreign origin asks, or by a foreign host, and the server needs no key.",
    404: "There is no such model or request.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "The queue is full; `Retry-After` says when to try again.",
    499: "The request was cancelled through `/v1/requests/{id}`.",
    500: "A fault of the server.",
    503: "Loading, draining, or without an engine; `Retry-After` says when to try again.",
    504: "The request's time was up before it was done.",
}


def answers(
    whole: type[msgspec.Struct], event: type[msgspec.Struct] | None = None, *, errors: Collection[int] = (404,)
) -> dict[int | str, dict[str, Any]]:
    """A route's responses: the whole answer, the events of its stream if it has one, then with all errors."""
    texts = {status: _ERRORS[status] for status in (_ERRORS if event is not None else errors)}
    return documented_answers(ErrorResponse, texts, whole=whole, event=event, last="[DONE]")
