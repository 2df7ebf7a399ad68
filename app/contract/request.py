"""Requests as they cross from the API process to the engine: what is to be generated or encoded, and how.

Token ids are plain ints, instants are :func:`time.monotonic`, times are seconds.
"""

from __future__ import annotations

import enum

import msgspec

DEFAULT_SAMPLING: dict[str, float] = {"temperature": 0.6}
"""Fields of :class:`SamplingParams` for models whose makers recommend nothing: at temperature 1 small ones ramble. The
other fields stay open: who asks for temperature 1 gets all of the distribution."""


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
    """Divisor of the logits; 0 takes the most likely token (greedy)."""
    top_p: float = 1.0
    """Share of the probability mass that the kept tokens hold; 1 keeps every token."""
    top_k: int = 0
    """Tokens that are kept, the most likely ones; 0 keeps every token."""
    min_p: float = 0.0
    """Least probability of a kept token, as a share of the most likely token's; 0 keeps every token."""
    repetition_penalty: float = 1.0
    """Divisor of a positive logit, factor of a negative one, of tokens seen in prompt or output; 1 changes nothing."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that the output has."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time that the output has it."""
    max_tokens: int = 16
    """Tokens to generate, at most."""
    min_tokens: int = 0
    """Generated tokens before which no stop token is sampled."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer."""
    include_stop: bool = False
    """Keep the matched stop string (or stop token's text) in the answer, as far as ``skip_special_tokens`` lets it."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the answer, besides EOS."""
    ignore_eos: bool = False
    """Go on after an EOS token."""
    seed: int | None = None
    """The client's seed; None: one is drawn at admission."""
    logprobs: int | None = None
    """Alternatives reported for each generated token; 0 reports the token alone, None nothing."""
    prompt_logprobs: int | None = None
    """Alternatives reported for each prompt token after the first; 0 reports the token alone, None nothing."""
    logit_bias: dict[int, float] = {}
    """Token id -> what is added to its logit."""
    allowed_token_ids: tuple[int, ...] = ()
    """The only tokens that may be sampled; empty: all may."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the answer's text."""


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True, tag="generate"):
    """One sequence to generate. ``n`` choices are ``n`` of these, told apart by ``sample_index``."""

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    seed: int
    """64-bit key of the counter RNG: the client's, or drawn at admission."""
    sample_index: int = 0
    """Number of the choice; part of the counter of the RNG."""
    client_index: int = 0
    """The API process that is answered."""
    priority: int = 0
    """Lower runs first; equal priorities in order of arrival."""
    arrival_time: float = 0.0
    """Instant at which the API process took the request."""
    deadline: float | None = None
    """Instant after which the request is answered with an error instead of more work."""
    cache_salt: str = ""
    """Requests share cached prefixes only under the same salt."""
    adapter: str = ""
    """Name of the adapter that answers; empty: the model itself."""
    prediction_token_ids: list[int] = []
    """What the client thinks the answer will be like: guesses of its tokens, where the engine takes any."""
    constraint: str = ""
    """Grammar that the generated tokens' bytes have to match, as llguidance reads it; empty: none."""


class Pooling(enum.StrEnum):
    """How the hidden states of a sequence become one vector."""

    MEAN = "mean"
    """The mean of all tokens' hidden states."""
    CLS = "cls"
    """The first token's hidden state."""
    LAST = "last"
    """The last token's hidden state."""
    NONE = "none"
    """No pooling: the hidden state of every token is returned."""


class EncodeRequest(msgspec.Struct, frozen=True, kw_only=True, tag="encode"):
    """One sequence to encode, computed whole."""

    request_id: str
    token_ids: list[int]
    pooling: Pooling = Pooling.MEAN
    normalize: bool = True
    """Whether the vector is scaled to length 1; without pooling, each token's vector."""
    client_index: int = 0
    """The API process that is answered."""
    priority: int = 0
    """Lower runs first; equal priorities in order of arrival."""
    arrival_time: float = 0.0
    """Instant at which the API process took the request."""
    deadline: float | None = None
    """Instant after which the request is answered with an error instead of more work."""
