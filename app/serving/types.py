"""What the protocols of ``api/`` and the text side say to each other."""

from __future__ import annotations

from dataclasses import dataclass, field

from app.contract.frames import RequestTimings
from app.contract.request import FinishReason, Pooling, SamplingParams


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt, ``n`` choices."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    n: int = 1
    priority: int = 0
    deadline: float | None = None
    """Instant of ``time.monotonic`` at which the request is given up."""
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class EncodingRequest:
    """Sequences to encode, a result each."""

    request_id: str
    inputs: list[list[int]]
    """Token ids of each sequence."""
    pooling: Pooling = Pooling.MEAN
    normalize: bool = True
    """Vectors are scaled to length 1."""
    priority: int = 0
    deadline: float | None = None
    """Instant of ``time.monotonic`` at which the request is given up."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token as text, with its log-probability; None for the first token of a prompt."""

    token_id: int
    text: str
    """The token's own bytes, undecodable ones replaced."""
    bytes: bytes
    logprob: float | None
    rank: int | None = None
    top: list[TokenLogprob] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """What one step added to one choice.

    ``text`` is final: held back as long as it could be part of a character or of a stop string. Tokens whose text is
    still held back are listed in the delta that releases the first of it, so a delta's ``tokens`` go with its text.
    """

    index: int
    text: str
    token_ids: list[int]
    tokens: list[TokenLogprob] = field(default_factory=list)
    """One a token of ``token_ids``, when logprobs were asked for."""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended the choice; None for EOS."""


@dataclass(slots=True)
class Usage:
    """Token counts of one request, all its choices together. The one source of usage, metrics and logs."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Tokens delivered: those of the text the client got (a matched stop string's last token included)."""
    cached_tokens: int = 0


@dataclass(slots=True)
class RequestRecord:
    """One finished request, for the ledger: usage, metrics and logs are all read from here."""

    request_id: str
    model: str
    endpoint: str
    """Route template, e.g. ``/v1/completions``."""
    stream: bool
    usage: Usage
    generated_tokens: int
    """Tokens the engine made, those past a stop match included."""
    finish_reasons: list[FinishReason]
    error_code: str | None
    timings: RequestTimings | None
    """Of the first choice."""
    token_intervals: list[float] = field(default_factory=list)
    """Seconds between successive tokens, all choices."""
    max_tokens: int = 0
    n: int = 1
