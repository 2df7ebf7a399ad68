"""The one place where a request that ended is written down: usage, metrics and the log line are read from here.

Every request ends here exactly once: finished, aborted, failed, or refused at admission. What was asked and answered
is never written, only how much of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator

import structlog

from app.contract.frames import RequestTimings
from app.contract.request import FinishReason
from app.errors import RequestError
from app.serving.types import EncodingRequest, GenerationRequest, RequestRecord, Usage
from app.telemetry.metrics import Metrics
from app.telemetry.per_request import RequestFigures

_log = structlog.get_logger("tuili.ledger")

OTHER_ERROR = "error"
CLIENT_LEFT = "client_left"
"""Reason of a request that ended while its prompts were being encoded."""


class LedgerEntry:
    """The account of one request under way. :meth:`close` it once, whatever happens."""

    def __init__(self, ledger: Ledger, record: RequestRecord, arrival: float) -> None:
        self.record = record
        self._ledger = ledger
        self._arrival = arrival
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether the request was written down."""
        return self._closed

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        return self.record.usage

    def add_generated(self, count: int, choice: int = 0) -> None:
        """Counts tokens that came from the engine for a choice."""
        self.record.generated_tokens += count
        self.record.choice_tokens[choice] += count
        self._ledger.metrics.observe_tokens(generated=count, delivered=0)

    def add_delivered(self, count: int, reasoning: int = 0) -> None:
        """Counts tokens whose text goes to the client now, and those of them that are thought."""
        self.record.usage.completion_tokens += count
        self.record.usage.reasoning_tokens += reasoning
        self._ledger.metrics.observe_tokens(generated=0, delivered=count)

    def add_interval(self, seconds: float, tokens: int) -> None:
        """Notes that ``tokens`` tokens of a choice came ``seconds`` after the one before them."""
        self.record.token_intervals.extend([seconds / tokens] * tokens)

    def note_timings(self, timings: RequestTimings) -> None:
        """Notes the instants of the first choice. A later call replaces what an earlier one noted."""
        self.record.timings = timings

    def close(self, finish_reasons: list[FinishReason], error_code: str | None = None) -> None:
        """Writes the request down. Closing again does nothing."""
        if self._closed:
            return
        self._closed = True
        self.record.finish_reasons = finish_reasons
        self.record.error_code = error_code
        self._ledger.write(self.record, time.monotonic() - self._arrival)


class Ledger:
    """Feeds metrics and log from the requests that end.

    Args:
        log_requests: write a line for each; metrics are fed in any case.
    """

    def __init__(self, metrics: Metrics, *, log_requests: bool = True) -> None:
        self.metrics = metrics
        self._log_requests = log_requests

    def open(self, request: GenerationRequest, *, endpoint: str, stream: bool, arrival: float) -> LedgerEntry:
        """Begins the account of a request that was admitted. ``endpoint`` is the route's template."""
        record = RequestRecord(
            request_id=request.request_id,
            model=self.metrics.model_name,
            endpoint=endpoint,
            stream=stream,
            usage=Usage(prompt_tokens=len(request.prompt_token_ids)),
            generated_tokens=0,
            finish_reasons=[],
            error_code=None,
            timings=None,
            max_tokens=request.params.max_tokens,
            n=request.n,
            choice_tokens=[0] * request.n,
        )
        return LedgerEntry(self, record, arrival)

    def open_encoding(self, request: EncodingRequest, *, endpoint: str, arrival: float) -> LedgerEntry:
        """Begins the account of a request to encode. All its tokens count as prompt tokens."""
        record = RequestRecord(
            request_id=request.request_id,
            model=self.metrics.model_name,
            endpoint=endpoint,
            stream=False,
            usage=Usage(prompt_tokens=sum(map(len, request.inputs))),
            generated_tokens=0,
            finish_reasons=[],
            error_code=None,
            timings=None,
            n=len(request.inputs),
        )
        return LedgerEntry(self, record, arrival)

    def refuse(self, request_id: str, endpoint: str, error: RequestError) -> None:
        """Writes down a request that was refused before anything was sent to the engine."""
        reason = error.code or OTHER_ERROR
        self.metrics.observe_refusal(endpoint, reason)
        self._log(
            "request refused",
            request_id=request_id,
            endpoint=endpoint,
            status=error.status,
            error_code=reason,
            param=error.param,
        )

    @contextlib.contextmanager
    def refusing(self, request_id: str, endpoint: str) -> Iterator[None]:
        """Writes a request down as refused that an error or its client's leaving ends within the block."""
        try:
            yield
        except RequestError as error:
            self.refuse(request_id, endpoint, error)
            raise
        except asyncio.CancelledError:
            left = RequestError("The client left before its prompts were encoded.", status=499, code=CLIENT_LEFT)
            self.refuse(request_id, endpoint, left)
            raise

    def _log(self, event: str, **values: object) -> None:
        if self._log_requests:
            _log.info(event, **values)

    def write(self, record: RequestRecord, seconds: float) -> None:
        """Writes a record to metrics and log, once, from :meth:`LedgerEntry.close`.

        Args:
            seconds: time from arrival to end.
        """
        usage = record.usage
        self.metrics.observe_request(
            RequestFigures(
                endpoint=record.endpoint,
                outcome=_outcome(record),
                finish_reasons=record.finish_reasons,
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.cached_tokens,
                choice_tokens=record.choice_tokens,
                max_tokens=record.max_tokens,
                seconds=seconds,
                timings=record.timings,
                token_intervals=record.token_intervals,
            )
        )
        self._log(
            "request",
            request_id=record.request_id,
            endpoint=record.endpoint,
            model=record.model,
            stream=record.stream,
            n=record.n,
            max_tokens=record.max_tokens,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            generated_tokens=record.generated_tokens,
            finish_reasons=[reason.value for reason in record.finish_reasons],
            error_code=record.error_code,
            seconds=round(seconds, 6),
            **_spans(record.timings),
        )


def _outcome(record: RequestRecord) -> str:
    if record.error_code is not None:
        return record.error_code
    return "aborted" if FinishReason.ABORT in record.finish_reasons else "ok"


def _spans(timings: RequestTimings | None) -> dict[str, float]:
    if timings is None:
        return {}
    instants = {
        "queue_seconds": (timings.arrival, timings.first_scheduled),
        "first_token_seconds": (timings.arrival, timings.first_token),
        "decode_seconds": (timings.first_token, timings.finished),
    }
    return {
        name: round(end - start, 6) for name, (start, end) in instants.items() if start is not None and end is not None
    }
