"""Token counts, as every endpoint reports them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import UNSET, UnsetType

from app.serving import types


class PromptTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Where prompt tokens came from."""

    cached_tokens: int
    """Prompt tokens taken from the prefix cache."""


class CompletionTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """What completion tokens were for."""

    reasoning_tokens: int = 0
    accepted_prediction_tokens: int | UnsetType = UNSET
    """Tokens that were guessed ahead (from `prediction`, or what the text itself repeats) and generated. Absent where
    nothing was guessed."""
    rejected_prediction_tokens: int | UnsetType = UNSET
    """Tokens that were guessed wrongly; they are not among the completion tokens."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of a request, all its prompts and choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


def total_usage(parts: Iterable[types.Usage]) -> Usage:
    """Usage of a request: the sum over its prompts."""
    prompt = completion = cached = reasoning = drafted = accepted = 0
    for part in parts:
        prompt += part.prompt_tokens
        completion += part.completion_tokens
        cached += part.cached_tokens
        reasoning += part.reasoning_tokens
        drafted += part.draft_tokens
        accepted += part.accepted_draft_tokens
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        completion_tokens_details=CompletionTokensDetails(
            reasoning_tokens=reasoning,
            accepted_prediction_tokens=accepted if drafted else UNSET,
            rejected_prediction_tokens=drafted - accepted if drafted else UNSET,
        ),
    )
