"""``best_of``: more choices are made than are answered with, and the likeliest are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from app.api.openai.schemas.generation import GenerationBody
from app.errors import RequestError
from app.serving.generation import Completion


def num_choices(body: GenerationBody) -> int:
    """Choices made for each prompt.

    Raises:
        RequestError: 400, fewer than the answer has, or more in a stream.
    """
    n = body.n or 1
    if body.best_of is None or body.best_of == n:
        return n
    if body.best_of < n:
        raise RequestError(f"best_of must be at least n ({n}).", code="invalid_value", param="best_of")
    if body.stream:
        message = "best_of is not supported with stream but for the value of n."
        raise RequestError(message, code="unsupported_parameter", param="best_of")
    return body.best_of


def best_choices(completions: Sequence[Completion], n: int) -> Sequence[Completion]:
    """The choices whose tokens are likeliest on average, likeliest first; all in their order if there are no more.

    Args:
        completions: choices for one prompt, with log-probabilities if there are more than ``n``.
        n: number of choices that are kept.
    """
    if len(completions) <= n:
        return completions
    ranked = sorted(completions, key=_mean_logprob, reverse=True)[:n]
    return [dataclasses.replace(completion, index=index) for index, completion in enumerate(ranked)]


def _mean_logprob(completion: Completion) -> float:
    logprobs = [token.logprob for token in completion.tokens if token.logprob is not None]
    return sum(logprobs) / max(1, len(logprobs))
