"""What chat and completions both ask for, in the terms of the task."""

from __future__ import annotations

from typing import TypedDict

from app.api.fields import read_logit_bias
from app.api.openai.best_of import num_choices
from app.api.openai.schemas.generation import GenerationBody
from app.errors import RequestError
from app.tasks.generate import SamplingOptions

ALL_THAT_FIT = -1
"""Most tokens of an answer that has no other bound than the context."""
_MOST_TOKENS = ("max_completion_tokens", "max_tokens", "max_new_tokens", "n_predict")
"""Names of the most tokens of an answer; of several that are given the first is heeded."""


class AnswerLimits(TypedDict):
    """Fields of :class:`GenerateTask` that say how long an answer may be."""

    max_tokens: int | None
    default_max_tokens: int | None


def answer_limits(body: GenerationBody, *, default: int | None = None, may_be_empty: bool = False) -> AnswerLimits:
    """How long an answer may be.

    Args:
        default: most tokens, where so many fit, when the body says nothing of it; None: all that fit.
        may_be_empty: an answer of no tokens may be asked for.

    Raises:
        RequestError: 400, no tokens are asked for and may not be.
    """
    for name in _MOST_TOKENS:
        asked: int | None = getattr(body, name)
        if asked == 0 and not may_be_empty:
            message = f"{name} must be at least 1, or {ALL_THAT_FIT} for all that fit; 0 is for completions with echo."
            raise RequestError(message, code="invalid_value", param=name)
        if asked == ALL_THAT_FIT:
            return {"max_tokens": None, "default_max_tokens": None}
        if asked is not None:
            return {"max_tokens": asked, "default_max_tokens": None}
    return {"max_tokens": None, "default_max_tokens": default}


def check_stream_options(body: GenerationBody) -> None:
    """Refuses ``stream_options`` without a stream. Raises :class:`RequestError` 400."""
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options needs stream.", code="invalid_value", param="stream_options")


def check_whole(body: GenerationBody) -> None:
    """Refuses in a stream what only whole answers have. Raises :class:`RequestError` 400."""
    if body.stream and body.prompt_logprobs is not None:
        message = "prompt_logprobs is not supported with stream."
        raise RequestError(message, code="unsupported_parameter", param="prompt_logprobs")


def sampling_options(
    body: GenerationBody, *, logprobs: int | None, prompt_logprobs: int | None = None
) -> SamplingOptions:
    """How to sample.

    Args:
        logprobs: alternatives reported for each token of the answer.
        prompt_logprobs: alternatives reported for each token of the prompt, besides those that the field asks for.

    Raises:
        RequestError: 400, biases of what is no token id.
    """
    if logprobs is None and num_choices(body) > (body.n or 1):
        logprobs = 0  # to tell the best
    wanted = [count for count in (prompt_logprobs, body.prompt_logprobs) if count is not None]
    return SamplingOptions(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=read_logit_bias(body.logit_bias),
        seed=body.seed,
        min_tokens=body.min_tokens,
        stop=(body.stop,) if body.stop and isinstance(body.stop, str) else tuple(body.stop or ()),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        allowed_token_ids=tuple(body.allowed_token_ids or ()),
        include_stop=body.include_stop_str_in_output,
        ignore_eos=body.ignore_eos,
        skip_special_tokens=body.skip_special_tokens,
        logprobs=logprobs,
        prompt_logprobs=max(wanted, default=None),
    )
