"""The responses of this protocol's routes, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from app.api.openapi import documented_answers
from app.api.tgi.schemas import FlatError

_ERRORS = {
    403: "A page of a foreign origin asks, or by a foreign host, and the server needs no key.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "The request cannot be served; the message names the field.",
    424: "The generation failed or was cancelled, or its time was up.",
    429: "The queue is full; `Retry-After` says when to try again.",
    500: "A fault of the server.",
    503: "Loading, draining, or without an engine; `Retry-After` says when to try again.",
}


def flat_answers(
    whole: type[msgspec.Struct] | None = None,
    event: type[msgspec.Struct] | None = None,
    *,
    in_list: bool = False,
    errors: Collection[int] = tuple(_ERRORS),
) -> dict[int | str, dict[str, Any]]:
    """A route's responses: the whole answer, or the events of its stream, or both; then its errors.

    Args:
        in_list: the whole answer is in a list.
    """
    texts = {status: _ERRORS[status] for status in errors}
    return documented_answers(FlatError, texts, whole=whole, event=event, in_list=in_list)
