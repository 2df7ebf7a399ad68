"""The responses of this protocol's routes, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from app.api.ollama.schemas.answers import OllamaError
from app.api.openapi import GENERATE_ERRORS, documented_answers

LINES = "application/x-ndjson"


def ollama_answers(
    whole: type[msgspec.Struct], *, streams: bool = False, errors: Collection[int] = ()
) -> dict[int | str, dict[str, Any]]:
    """A route's responses: the whole answer, which is a line of its stream too, and all errors or those given."""
    texts = {status: GENERATE_ERRORS[status] for status in (GENERATE_ERRORS if streams else errors)}
    return documented_answers(OllamaError, texts, whole=whole, event=whole if streams else None, stream_type=LINES)
