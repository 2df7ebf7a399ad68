"""``/v1/requests/{id}``."""

from __future__ import annotations

from typing import Literal

import msgspec


class RequestSeconds(msgspec.Struct, frozen=True, kw_only=True):
    """Durations; null for what is not known yet. The engine tells of a request for the first time with a token."""

    total: float
    """Since the request came; until its end once it ended."""
    queue: float | None
    prefill: float | None
    decode: float | None
    """So far, while the request goes on."""


class LiveRequest(msgspec.Struct, frozen=True, kw_only=True):
    """How far a request has come, all its prompts and choices together."""

    id: str
    """Its ``X-Request-Id``."""
    object: Literal["request"] = "request"
    endpoint: str
    """Route template."""
    stream: bool
    status: str
    """``queued`` (no token yet: it waits, or its prompt is being read), ``running``, ``finished``, ``cancelled``,
    ``aborted`` (its client left) or ``failed``."""
    created: int
    prompts: int
    choices: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    """Delivered to the client."""
    generated_tokens: int
    """Made by the engine."""
    seconds: RequestSeconds
    finish_reasons: list[str]
    """One a choice, when the request has ended."""
    error_code: str | None
