"""A request's fields to the engine's sampling parameters, against the server's limits and the model's vocabulary."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from app.api.schemas.requests import GenerationBody
from app.api.service import ApiSettings
from app.errors import RequestError
from app.serving.served import Served
from app.types import SamplingParams

GREEDY_BELOW = 1e-5
"""Temperatures below this divide logits into infinities; they are greedy anyway."""


def check_limits(body: GenerationBody, settings: ApiSettings, *, num_prompts: int = 1) -> None:
    """Bounds what one request can fan out into. Raises :class:`RequestError` 400."""
    n = body.n or 1
    at_most("n", n, settings.max_n, "choices a prompt")
    at_most("prompt", num_prompts, settings.max_prompts, "prompts")
    at_most("n", n * num_prompts, settings.max_prompts, "choices of all prompts together")
    if isinstance(body.stop, list):
        at_most("stop", len(body.stop), settings.max_stop, "stop strings")
    at_most("stop_token_ids", len(body.stop_token_ids or ()), settings.max_stop, "stop token ids")
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options needs stream.", code="invalid_value", param="stream_options")


def at_most(param: str, count: int, limit: int, what: str) -> None:
    """Bounds a number of things. Raises :class:`RequestError` 400."""
    if count > limit:
        raise RequestError(f"{param}: {count} {what} exceed the limit of {limit}.", code="invalid_value", param=param)


def check_logprobs(param: str, count: int | None, settings: ApiSettings) -> None:
    """Bounds the alternatives a token. Raises :class:`RequestError` 400."""
    at_most(param, count or 0, settings.max_logprobs, "alternatives a token")


def check_token_ids(param: str, token_ids: Collection[int], vocab_size: int) -> None:
    """Refuses ids that the model's logits do not have. Raises :class:`RequestError` 400."""
    if token_ids and max(token_ids) >= vocab_size:
        message = f"{param}: token ids go from 0 to {vocab_size - 1}, not {max(token_ids)}."
        raise RequestError(message, code="invalid_value", param=param)


def sampling_params(
    body: GenerationBody,
    served: Served,
    *,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
) -> SamplingParams:
    """How the engine samples what ``body`` asks for; what it leaves open comes from the model's own defaults.

    Raises:
        RequestError: 400, a token id out of range or ``min_tokens`` above ``max_tokens``.
    """
    if (body.min_tokens or 0) > max_tokens:
        message = f"min_tokens ({body.min_tokens}) exceeds the most tokens that may come ({max_tokens})."
        raise RequestError(message, code="invalid_value", param="min_tokens")
    vocab_size = served.info().vocab_size
    check_token_ids("stop_token_ids", body.stop_token_ids or (), vocab_size)
    asked: dict[str, Any] = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "min_tokens": body.min_tokens,
        "include_stop": body.include_stop_str_in_output,
        "ignore_eos": body.ignore_eos,
        "skip_special_tokens": body.skip_special_tokens,
    }
    values = served.generator.default_params | {name: value for name, value in asked.items() if value is not None}
    if values.get("temperature", 1.0) < GREEDY_BELOW:
        values["temperature"] = 0.0
    values["top_k"] = max(0, values.get("top_k", 0))
    return SamplingParams(
        **values,
        max_tokens=max_tokens,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        # The engine's key has 64 bits without a sign.
        seed=None if body.seed is None else body.seed % 2**64,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        logit_bias=_logit_bias(body, vocab_size),
    )


def _logit_bias(body: GenerationBody, vocab_size: int) -> dict[int, float]:
    bias: dict[int, float] = {}
    for key, value in (body.logit_bias or {}).items():
        if not key.isascii() or not key.isdecimal() or len(key) > 10:
            raise RequestError("logit_bias: keys are token ids.", code="invalid_value", param="logit_bias")
        bias[int(key)] = value
    check_token_ids("logit_bias", bias, vocab_size)
    return bias
