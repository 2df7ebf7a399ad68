"""Histograms that get one observation a request, or one a choice or token of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.contract.frames import RequestTimings
from app.contract.request import FinishReason
from app.telemetry.tallies import Spread

TOKEN_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_MEAN_TOKEN_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
"""With the bounds of which dashboards ask for the share of requests below them."""
_FIRST_TOKEN_SECONDS = (
    0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0,
)  # fmt: skip
REQUEST_SECONDS = (
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 240.0, 600.0, 1800.0,
)  # fmt: skip
_TOKENS = tuple(digit * 10**zeros for zeros in range(6) for digit in (1, 2, 5))
_CHOICES = (1, 2, 5, 10, 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFigures:
    """Figures of one request that ended."""

    endpoint: str
    """The route's template."""
    outcome: str
    """``ok``, ``aborted`` or an error code."""
    finish_reasons: Sequence[FinishReason]
    """Why each choice ended."""
    prompt_tokens: int
    cached_tokens: int
    """Those of them that the prefix cache held."""
    choice_tokens: Sequence[int] = ()
    """Tokens that the engine made for each choice; none in requests to encode."""
    max_tokens: int = 0
    """Most tokens that a choice could have."""
    seconds: float
    """Time from arrival to end."""
    timings: RequestTimings | None
    """Instants of the first choice."""
    token_intervals: Sequence[float]
    """Seconds between successive tokens of a choice, all choices together."""


class PerRequest:
    """The histograms.

    Args:
        histogram: makes one, of a name, a text and bounds.
    """

    def __init__(self, histogram: Callable[[str, str, Sequence[float]], Spread]) -> None:
        self._first_token = histogram(
            "tuili_time_to_first_token_seconds", "Arrival to first token.", _FIRST_TOKEN_SECONDS
        )
        self._inter_token = histogram(
            "tuili_inter_token_latency_seconds", "Between successive tokens of a choice.", TOKEN_SECONDS
        )
        self._mean_token = histogram(
            "tuili_request_time_per_output_token_seconds",
            "Mean time of a token after the first; of requests with more than one.",
            _MEAN_TOKEN_SECONDS,
        )
        self._seconds = histogram("tuili_request_seconds", "Arrival to end.", REQUEST_SECONDS)
        self._queue = histogram("tuili_request_queue_seconds", "Arrival to first schedule.", REQUEST_SECONDS)
        self._prefill = histogram("tuili_request_prefill_seconds", "First schedule to first token.", REQUEST_SECONDS)
        self._decode = histogram("tuili_request_decode_seconds", "First token to last.", REQUEST_SECONDS)
        self._inference = histogram("tuili_request_inference_seconds", "First schedule to last token.", REQUEST_SECONDS)
        self._prompt = histogram("tuili_request_prompt_tokens", "Prompt tokens of a request.", _TOKENS)
        self._computed = histogram(
            "tuili_request_computed_prompt_tokens", "Those of them that the prefix cache did not hold.", _TOKENS
        )
        self._generated = histogram("tuili_choice_generated_tokens", "Tokens made for a choice.", _TOKENS)
        self._longest = histogram("tuili_request_longest_choice_tokens", "Tokens of the longest choice.", _TOKENS)
        self._max_tokens = histogram("tuili_request_max_tokens", "Most tokens that a choice could have.", _TOKENS)
        self._n = histogram("tuili_request_choices", "Choices of a request.", _CHOICES)

    def observe(self, figures: RequestFigures) -> None:
        """Adds what one request has of each."""
        self._seconds.observe(figures.seconds)
        for interval in figures.token_intervals:
            self._inter_token.observe(interval)
        self._prompt.observe(figures.prompt_tokens)
        self._computed.observe(max(0, figures.prompt_tokens - figures.cached_tokens))
        if figures.choice_tokens:
            for tokens in figures.choice_tokens:
                self._generated.observe(tokens)
            self._longest.observe(max(figures.choice_tokens))
            self._max_tokens.observe(figures.max_tokens)
            self._n.observe(len(figures.choice_tokens))
        if figures.timings is not None:
            self._observe_spans(figures, figures.timings)

    def _observe_spans(self, figures: RequestFigures, timings: RequestTimings) -> None:
        finished = timings.finished
        if finished is None and figures.outcome == "ok":  # by a stop string, of which the engine does not know
            finished = timings.arrival + figures.seconds
        _observe_span(self._queue, timings.arrival, timings.first_scheduled)
        _observe_span(self._first_token, timings.arrival, timings.first_token)
        _observe_span(self._prefill, timings.first_scheduled, timings.first_token)
        _observe_span(self._decode, timings.first_token, finished)
        _observe_span(self._inference, timings.first_scheduled, finished)
        tokens = figures.choice_tokens[0] if figures.choice_tokens else 0
        if tokens > 1 and timings.first_token is not None and finished is not None:
            self._mean_token.observe(max(0.0, finished - timings.first_token) / (tokens - 1))


def _observe_span(histogram: Spread, start: float | None, end: float | None) -> None:
    if start is not None and end is not None:
        histogram.observe(max(0.0, end - start))
