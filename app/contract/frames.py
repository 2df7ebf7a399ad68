"""Frames between API process and engine process.

Typed, validated on decode, never pickled. Instants are :func:`time.monotonic`, one clock for every process of a
machine; times are seconds.
"""

from __future__ import annotations

import msgspec

from app.contract.info import RunnerInfo
from app.contract.request import EncodeRequest, FinishReason, GenerateRequest


class AbortRequests(msgspec.Struct, frozen=True, tag="abort"):
    """Stop these requests and free what they hold within one step. Unknown ids are ignored: they just finished."""

    request_ids: list[str]


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Leave the loop and exit 0."""


ClientFrame = GenerateRequest | EncodeRequest | AbortRequests | Shutdown


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log-probability of one token and of the most likely alternatives at its position."""

    token_id: int
    logprob: float
    rank: int
    """1 for the most likely token."""
    top: list[tuple[int, float]]
    """(token id, logprob), most likely first; the caller's number of alternatives."""


class EngineError(msgspec.Struct, frozen=True, array_like=True):
    """Why a request ended in :attr:`FinishReason.ERROR`."""

    code: str
    """``context_length_exceeded``, ``deadline_exceeded``, ``invalid_request``, ``overloaded``,
    ``engine_error``, ``engine_restarted``.
    """
    message: str


class RequestTimings(msgspec.Struct, frozen=True, array_like=True):
    """Instants of a request's life in the engine; None where it did not get that far."""

    arrival: float
    first_scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None


class EngineOutput(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What one step gave one request."""

    request_id: str
    new_token_ids: list[int] = []
    logprobs: list[TokenLogprobs] | None = None
    """One an element of ``new_token_ids``, when asked for."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """For prompt positions 1, 2, …; in one piece, with the first output."""
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    """The token that ended the request (EOS or of ``stop_token_ids``); it is the last of the generated tokens."""
    num_cached_tokens: int = 0
    error: EngineError | None = None
    timings: RequestTimings | None = None
    """With the first output and with the last."""


class EncodeOutput(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The one answer to an :class:`EncodeRequest`."""

    request_id: str
    dtype: str = ""
    """Of the elements of ``data``: ``float32``."""
    shape: tuple[int, ...] = ()
    """[D] of a pooled sequence, [tokens, D] without pooling."""
    data: bytes = b""
    """The elements, row by row, little-endian; empty where the request ended without a result."""
    finish_reason: FinishReason = FinishReason.STOP
    """``STOP`` with a result, ``ABORT`` or ``ERROR`` without."""
    error: EngineError | None = None
    timings: RequestTimings | None = None
    """``first_token`` is None. None altogether where the request was refused."""


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """State after a step; ``*_total`` fields count since the engine process started."""

    num_running: int = 0
    """Sequences that are being computed, to generate or to encode; likewise ``num_waiting``."""
    num_waiting: int = 0
    blocks_used: int = 0
    """Blocks held by requests; cached blocks nobody holds are free. Of the KV cache group of which most is held."""
    blocks_total: int = 0
    """Blocks of that group."""
    steps_total: int = 0
    prompt_tokens_total: int = 0
    """Prompt tokens computed (cached ones excluded)."""
    generation_tokens_total: int = 0
    preemptions_total: int = 0
    prefix_query_tokens_total: int = 0
    prefix_hit_tokens_total: int = 0
    encode_tokens_total: int = 0
    """Tokens of sequences that were encoded."""


class StepRecord(msgspec.Struct, frozen=True, array_like=True):
    """What one step did and where its time went."""

    tokens: int
    """Computed."""
    seconds: float
    """From the end of the step before, or from when there was work again, to its results."""
    kernel_seconds: float
    """That its kernels ran; the rest is the host's: schedule, prepare, collect, send."""
    decode: bool
    """Each row computed only what it sampled; otherwise the step read prompts too."""
    replayed: bool
    """Run as one call of a recording, not op by op."""
    encode: bool = False
    """A batch of sequences to encode, of which each was computed whole."""


class OutputFrame(msgspec.Struct, frozen=True, kw_only=True, tag="step"):
    """The one frame that a step sends a client."""

    client_index: int
    outputs: list[EngineOutput]
    encoded: list[EncodeOutput] = []
    stats: EngineStats
    steps: list[StepRecord] = []
    """Steps since the frame before."""


class LoadProgress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """How far start-up has come."""

    phase: str
    done: int = 0
    total: int = 0
    """0: not countable."""
    seconds: float = 0.0
    """Since the phase began."""


class EngineReady(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The engine takes requests from here on."""

    info: RunnerInfo
    max_kv_tokens: int
    """Tokens of the longest sequence that the whole KV cache holds."""
    pid: int


class EngineFatal(msgspec.Struct, frozen=True, tag="fatal"):
    """The engine cannot go on; one line a person can act on."""

    message: str


EngineFrame = OutputFrame | LoadProgress | EngineReady | EngineFatal
