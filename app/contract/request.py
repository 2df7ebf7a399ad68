"""Requests as they cross from the API process to the engine: what is to be generated or encoded, and how.

Token ids are plain ints, instants are :func:`time.monotonic`, times are seconds.
"""

from __future__ import annotations

import enum

import msgspec


class FinishReason(enum.StrEnum):
    """Why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class RequestStatus(enum.StrEnum):
    """Where a request stands inside the engine."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one sequence is sampled. Validated by the API layer and again by the engine.

    ``stop`` is matched on text, in the API process only. Logprobs are those of the raw logits, before penalties,
    bias and temperature.
    """

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_tokens: int = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    """Keep the matched stop string (or stop token's text) in the answer, as far as ``skip_special_tokens`` lets it."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int | None = None
    """Alternatives reported for each generated token; 0 reports the token alone, None nothing."""
    prompt_logprobs: int | None = None
    """The same for each prompt token after the first."""
    logit_bias: dict[int, float] = {}
    skip_special_tokens: bool = True


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True, tag="generate"):
    """One sequence to generate. ``n`` choices are ``n`` of these, told apart by ``sample_index``."""

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    seed: int
    """64-bit key of the counter RNG: the client's, or drawn at admission."""
    sample_index: int = 0
    client_index: int = 0
    priority: int = 0
    """Lower runs first; equal priorities in order of arrival."""
    arrival_time: float = 0.0
    deadline: float | None = None
    """Instant after which the request is answered with an error instead of more work."""
    cache_salt: str = ""
    """Requests share cached prefixes only under the same salt."""


class Pooling(enum.StrEnum):
    """How the hidden states of a sequence become one vector."""

    MEAN = "mean"
    CLS = "cls"
    """That of the first token."""
    LAST = "last"
    """That of the last token."""
    NONE = "none"
    """Not at all: the hidden state of every token is returned."""


class EncodeRequest(msgspec.Struct, frozen=True, kw_only=True, tag="encode"):
    """One sequence to encode, whole."""

    request_id: str
    token_ids: list[int]
    pooling: Pooling = Pooling.MEAN
    normalize: bool = True
    """The vector is scaled to length 1; without pooling each token's is."""
    client_index: int = 0
    priority: int = 0
    """Lower runs first; equal priorities in order of arrival."""
    arrival_time: float = 0.0
    deadline: float | None = None
    """Instant after which the request is answered with an error instead of more work."""
