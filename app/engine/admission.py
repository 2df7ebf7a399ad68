"""Checks on a request before the engine takes it. The engine does not rely on the API process having made them."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from app.contract.frames import EngineError
from app.contract.request import EncodeRequest, GenerateRequest, SamplingParams

MAX_LOGPROBS = 1024
"""Alternatives for a token, at most; bounds the size of an answer whatever the API process lets through."""

LARGEST = 1e30
"""Magnitude of temperature, biases and penalties: fp32 logits stay finite under them and a million times them."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request must fit into."""

    vocab_size: int
    """Valid token ids are below it."""
    max_model_len: int
    """Tokens of the longest sequence; 0: the model does not generate."""
    max_kv_tokens: int
    """Tokens of the longest sequence that the whole KV cache holds."""


class _InvalidError(ValueError):
    """A request is refused; the message is the reason."""


def check(request: GenerateRequest, limits: Limits) -> EngineError | None:
    """Why ``request`` cannot be served, or None. A request that passes fits the engine when it is alone in it."""
    if limits.max_model_len == 0:
        return EngineError("invalid_request", "this model does not generate")
    try:
        _check_tokens(request, limits)
        _check_sampling(request.sampling, limits)
        _check_schedule(request)
        _require(-(1 << 63) <= request.seed < 1 << 64, "seed must fit in 64 bits")
        _require(0 <= request.sample_index < 1 << 32, "sample_index must fit in 32 bits")
    except (_InvalidError, TypeError) as error:
        return EngineError("invalid_request", str(error))
    wanted = len(request.prompt_token_ids) + request.sampling.max_tokens
    capacity = min(limits.max_model_len, limits.max_kv_tokens)
    if wanted > capacity:
        message = (
            f"{len(request.prompt_token_ids)} prompt tokens and max_tokens {request.sampling.max_tokens} exceed "
            f"the {capacity} tokens that fit (context {limits.max_model_len}, KV cache {limits.max_kv_tokens})"
        )
        return EngineError("context_length_exceeded", message)
    return None


def check_encode(request: EncodeRequest, vocab_size: int, max_len: int) -> EngineError | None:
    """Why ``request`` cannot be encoded, or None.

    Args:
        vocab_size: valid token ids are below it.
        max_len: tokens of the longest sequence; 0: the model does not encode.
    """
    if max_len == 0:
        return EngineError("invalid_request", "this model does not encode")
    try:
        _require(bool(request.token_ids), "there is nothing to encode")
        _check_ids("token_ids", request.token_ids, vocab_size)
        _check_schedule(request)
    except (_InvalidError, TypeError) as error:
        return EngineError("invalid_request", str(error))
    if len(request.token_ids) > max_len:
        return EngineError(
            "context_length_exceeded", f"{len(request.token_ids)} tokens exceed the {max_len} that are encoded at once"
        )
    return None


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise _InvalidError(message)


def _check_tokens(request: GenerateRequest, limits: Limits) -> None:
    _require(bool(request.prompt_token_ids), "the prompt is empty")
    sampling = request.sampling
    for name, token_ids in (
        ("prompt", request.prompt_token_ids),
        ("stop_token_ids", sampling.stop_token_ids),
        ("logit_bias", sampling.logit_bias),
        ("allowed_token_ids", sampling.allowed_token_ids),
    ):
        if token_ids:
            _check_ids(name, token_ids, limits.vocab_size)


def _check_ids(name: str, token_ids: Collection[int], vocab_size: int) -> None:
    low, high = min(token_ids), max(token_ids)
    _require(low >= 0 and high < vocab_size, f"{name}: token ids go from 0 to {vocab_size - 1}")


def _check_sampling(params: SamplingParams, limits: Limits) -> None:
    _require(0 <= params.temperature <= LARGEST, f"temperature must be in [0, {LARGEST:g}]")
    _require(0 < params.top_p <= 1, "top_p must be in (0, 1]")
    _require(params.top_k >= 0, "top_k must be >= 0")
    _require(0 <= params.min_p <= 1, "min_p must be in [0, 1]")
    _require(1e-4 <= params.repetition_penalty <= 1e4, "repetition_penalty must be in [0.0001, 10000]")
    _require(abs(params.presence_penalty) <= LARGEST, f"presence_penalty must be in [-{LARGEST:g}, {LARGEST:g}]")
    _require(abs(params.frequency_penalty) <= LARGEST, f"frequency_penalty must be in [-{LARGEST:g}, {LARGEST:g}]")
    biases = params.logit_bias.values()
    _require(all(abs(bias) <= LARGEST for bias in biases), f"logit_bias values must be in [-{LARGEST:g}, {LARGEST:g}]")
    _require(params.max_tokens >= 1, "max_tokens must be >= 1")
    _require(0 <= params.min_tokens <= params.max_tokens, "min_tokens must be in [0, max_tokens]")
    most = min(MAX_LOGPROBS, limits.vocab_size)
    for name, count in (("logprobs", params.logprobs), ("prompt_logprobs", params.prompt_logprobs)):
        _require(count is None or 0 <= count <= most, f"{name} must be in [0, {most}]")


def _check_schedule(request: GenerateRequest | EncodeRequest) -> None:
    _require(math.isfinite(request.arrival_time), "arrival_time must be finite")
    _require(request.deadline is None or math.isfinite(request.deadline), "deadline must be finite")
