"""The clients' requests that are under way, and for a while those that ended, by request id."""

from __future__ import annotations

import contextlib
import enum
import itertools
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from app.contract.request import FinishReason
from app.serving.generation import Generation
from app.serving.phases import Phases, longest, phases

MAX_ENDED = 256
"""Ended requests that can still be asked for."""


class LiveStatus(enum.StrEnum):
    """How far a client's request has come."""

    QUEUED = "queued"
    """No token yet: it waits, or its prompt is being read."""
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    """Another request cancelled it."""
    ABORTED = "aborted"
    """Its client left."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class RequestState:
    """One client's request, all its prompts and choices together."""

    request_id: str
    endpoint: str
    """Template of the route."""
    stream: bool
    status: LiveStatus
    created: float
    """Unix time of its arrival."""
    seconds: float
    """Seconds since its arrival; from arrival to end once it has ended."""
    prompts: int
    choices: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    """Tokens delivered to the client."""
    generated_tokens: int
    """Tokens made by the engine."""
    phases: Phases
    finish_reasons: tuple[FinishReason, ...]
    """Finish reasons, one a choice that has ended."""
    error_code: str | None


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A request that has not ended, for whoever may not know whose it is."""

    number: int
    """Tells it from others: the first request has 1."""
    owner: str
    """Name of the API key; empty without keys."""
    model: str
    """Own name of the served model."""
    state: RequestState
    sequence_ids: tuple[str, ...]
    """Ids by which the engine knows its sequences."""


class _LiveRequest:
    """A request under way."""

    def __init__(self, request_id: str, generations: Sequence[Generation], number: int) -> None:
        self.number = number
        self._request_id = request_id
        self._generations = generations
        self._created = time.time()
        self._started = time.monotonic()

    def cancel(self) -> None:
        for generation in self._generations:
            generation.cancel()

    def state(self) -> RequestState:
        now = time.monotonic()
        records = [generation.record for generation in self._generations]
        usages = [record.usage for record in records]
        return RequestState(
            request_id=self._request_id,
            endpoint=records[0].endpoint,
            stream=records[0].stream,
            status=self._status(),
            created=self._created,
            seconds=now - self._started,
            prompts=len(records),
            choices=sum(record.n for record in records),
            prompt_tokens=sum(usage.prompt_tokens for usage in usages),
            cached_tokens=sum(usage.cached_tokens for usage in usages),
            completion_tokens=sum(usage.completion_tokens for usage in usages),
            generated_tokens=sum(record.generated_tokens for record in records),
            phases=longest(phases(record.timings, now) for record in records),
            finish_reasons=tuple(reason for record in records for reason in record.finish_reasons),
            error_code=next((record.error_code for record in records if record.error_code is not None), None),
        )

    def under_way(self, owner: str) -> UnderWay:
        return UnderWay(
            number=self.number,
            owner=owner,
            model=self._generations[0].record.model,
            state=self.state(),
            sequence_ids=tuple(each for generation in self._generations for each in generation.sequence_ids),
        )

    def _status(self) -> LiveStatus:
        records = [generation.record for generation in self._generations]
        if any(generation.cancelled for generation in self._generations):
            return LiveStatus.CANCELLED
        if any(record.error_code is not None for record in records):
            return LiveStatus.FAILED
        if any(FinishReason.ABORT in record.finish_reasons for record in records):
            return LiveStatus.ABORTED
        if all(record.finish_reasons for record in records):
            return LiveStatus.FINISHED
        return LiveStatus.RUNNING if any(record.generated_tokens for record in records) else LiveStatus.QUEUED


class LiveRequests:
    """Finds requests by the id that their clients know.

    Clients choose ids and may choose one twice: the latest request of an id is the one that is shown, and all of them
    are cancelled together. Each owner (the name of an API key; empty without keys) has ids of its own.
    As many are held as are under way, which admission bounds, and ``max_ended`` more.
    """

    def __init__(self, max_ended: int = MAX_ENDED) -> None:
        self._live: dict[tuple[str, str], list[_LiveRequest]] = {}
        self._ended: OrderedDict[tuple[str, str], RequestState] = OrderedDict()
        self._max_ended = max_ended
        self._numbers = itertools.count(1)

    @contextlib.asynccontextmanager
    async def track(
        self, request_id: str, generations: Sequence[Generation], *, owner: str = "", answer_id: str | None = None
    ) -> AsyncIterator[None]:
        """Keeps a request, of one generation or more, while the block runs; closes the generations at its end.

        Args:
            answer_id: another id by which it is found.
        """
        live = _LiveRequest(request_id, generations, next(self._numbers))
        keys = dict.fromkeys((owner, each) for each in (request_id, answer_id) if each is not None)
        for key in keys:
            self._live.setdefault(key, []).append(live)
        try:
            yield
        finally:
            for key in keys:
                self._live[key].remove(live)
                if not self._live[key]:
                    del self._live[key]
            for generation in generations:
                await generation.aclose()
            for key in keys:
                self._keep(key, live.state())

    @property
    def count(self) -> int:
        """Number of requests that are under way."""
        return len({id(live) for same_id in self._live.values() for live in same_id})

    def owners(self, request_id: str) -> list[str]:
        """Owners of the requests with this id, those of requests under way first."""
        known = dict.fromkeys([*reversed(self._live), *reversed(self._ended)])
        return [owner for owner, each in known if each == request_id]

    def under_way(self) -> list[UnderWay]:
        """The requests that have not ended, each once, the oldest first."""
        known = {live.number: (live, owner) for (owner, _), same_id in self._live.items() for live in same_id}
        return [live.under_way(owner) for _, (live, owner) in sorted(known.items())]

    def find(self, request_id: str, *, owner: str = "") -> RequestState | None:
        """The state of a request; None when its id is unknown, or its end long ago."""
        key = (owner, request_id)
        if same_id := self._live.get(key):
            return same_id[-1].state()
        return self._ended.get(key)

    def cancel(self, request_id: str, *, owner: str = "") -> RequestState | None:
        """Ends a request with an error to its client, frees what it holds, and returns its state.

        One that ended already stays as it is. None when the id is unknown, or the request's end long ago.
        """
        for live in self._live.get((owner, request_id), ()):
            live.cancel()
        return self.find(request_id, owner=owner)

    def _keep(self, key: tuple[str, str], state: RequestState) -> None:
        self._ended.pop(key, None)
        self._ended[key] = state
        while len(self._ended) > self._max_ended:
            self._ended.popitem(last=False)
