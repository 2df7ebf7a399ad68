"""Records that protocols, tasks and the text side pass to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from app.contract.frames import RequestTimings
from app.contract.request import FinishReason, Pooling, SamplingParams
from app.text.parsers.reply import Content, ReplyParser, ReplyPart


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
    prediction_token_ids: list[int] = field(default_factory=list)
    """What the client thinks the answer will be like; it changes nothing but how soon that comes."""
    adapter: str = ""
    """Name of the adapter that answers; empty: the model itself."""
    constraint: str = ""
    """What binds the answers to a form (:meth:`app.text.grammars.grammar.Grammar.source`); empty: nothing does."""
    constraint_name: str | None = None
    """The client's name for it, which errors about it name."""
    new_parser: Callable[[], ReplyParser] | None = None
    """Makes what tells the parts of one answer apart; None: all of it is text."""


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
    """One token as text, with its log-probability."""

    token_id: int
    text: str
    """The token's own bytes, undecodable ones replaced."""
    bytes: bytes
    logprob: float | None
    """Natural logarithm; None for the first token of a prompt."""
    rank: int | None = None
    """Rank in the vocabulary: 1 for the most likely token."""
    top: list[TokenLogprob] = field(default_factory=list)
    """The most likely tokens at this place, most likely first."""


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
    """Log-probabilities, one a token of ``token_ids``, when they were asked for."""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended the choice; None for EOS."""
    parts: tuple[ReplyPart, ...] = ()
    """What the text is made of, in its order, where a parser tells it apart; ``text`` is then the content alone."""
    reasoning_tokens: int = 0
    """Those of ``token_ids`` that the model thought with."""

    @property
    def reply(self) -> tuple[ReplyPart, ...]:
        """``parts``, or all of the text as content where there is no parser."""
        return self.parts or ((Content(self.text),) if self.text else ())


@dataclass(slots=True)
class Usage:
    """Token counts of one request, all its choices together. The one source of usage, metrics and logs."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Tokens delivered: those of the text the client got (a matched stop string's last token included)."""
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    """Those of ``completion_tokens`` that the model thought with."""
    draft_tokens: int = 0
    """Tokens that the engine guessed and verified."""
    accepted_draft_tokens: int = 0
    """Those of them that were right, and so were generated."""


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
    """Instants of the first choice."""
    token_intervals: list[float] = field(default_factory=list)
    """Seconds between successive tokens, all choices."""
    max_tokens: int = 0
    n: int = 1
    choice_tokens: list[int] = field(default_factory=list)
    """Those of ``generated_tokens`` that each choice has; empty in requests to encode."""
