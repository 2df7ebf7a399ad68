"""Token counts, as every endpoint reports them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from app.serving import types


class PromptTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Of the prompt tokens."""

    cached_tokens: int
    """Taken from the prefix cache."""


class CompletionTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Of the completion tokens."""

    reasoning_tokens: int = 0


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of a request, all its prompts and choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


_NO_REASONING = CompletionTokensDetails()


def total_usage(parts: Iterable[types.Usage]) -> Usage:
    """Usage of a request out of that of its prompts."""
    prompt = completion = cached = 0
    for part in parts:
        prompt += part.prompt_tokens
        completion += part.completion_tokens
        cached += part.cached_tokens
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        completion_tokens_details=_NO_REASONING,
    )
