"""The responses of this protocol's routes, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from app.api.anthropic.schemas.answers import AnthropicError
from app.api.openapi import GENERATE_ERRORS, documented_answers


def message_answers(
    whole: type[msgspec.Struct], events: Sequence[type[msgspec.Struct]] | None = None
) -> dict[int | str, dict[str, Any]]:
    """A route's responses: the whole answer, the events of its stream if it has one, its errors."""
    return documented_answers(AnthropicError, GENERATE_ERRORS, whole=whole, event=events)
