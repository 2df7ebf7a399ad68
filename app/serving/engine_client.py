"""The API process's side of the engine: one connection at a time, outputs routed to whoever asked.

``submit`` and ``abort`` only queue frames, so they work in a ``finally`` of a cancelled task. A connection that ends
answers every request in flight with ``engine_restarted``; the client itself lives on and serves the next connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import msgspec

from app.contract.frames import (
    AbortRequests,
    AdapterOutcome,
    ClientFrame,
    EncodeOutput,
    EngineError,
    EngineFatal,
    EngineOutput,
    EngineReady,
    EngineStats,
    Holdings,
    LoadProgress,
    OutputFrame,
    Shutdown,
)
from app.contract.request import EncodeRequest, GenerateRequest
from app.errors import RequestError
from app.ipc import ChannelClosedError, ProgressStamp
from app.serving.adapters import ServedAdapters
from app.serving.connection import EngineConnection
from app.serving.mailbox import Mailbox
from app.serving.progress import ProgressWatch
from app.serving.surveys import Surveys
from app.serving.vocabulary import VocabularyGate
from app.telemetry.metrics import Metrics

MAX_BACKLOG = 4096
_LOADING_GUESS = 5.0
_MIN_ENDS = 4
_MIN_RATE_WINDOW = 0.1


class EngineState(enum.StrEnum):
    """What the engine can do for a new request."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"
    IDLE = "idle"
    """There is none, and none is starting; one may be started again."""


class EngineFailedError(Exception):
    """The engine cannot be used any more; one line a person can act on."""


class EngineClient:
    """Routes frames between requests and the engine that is connected at the moment.

    Args:
        metrics: gets the engine's state and its counters, which go on over restarts.
        max_backlog: tokens that may wait for the reader of one request; then that request alone is aborted.
        on_progress: called with each step of a start.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        max_backlog: int = MAX_BACKLOG,
        on_progress: Callable[[LoadProgress], None] | None = None,
    ) -> None:
        self.ready: EngineReady | None = None
        """What the engine said when it came up; kept while the next one loads."""
        self.stats = EngineStats()
        self.slowest_token: float | None = None
        """Seconds a token of the slowest step so far; None before the first."""
        self.progress: LoadProgress | None = None
        """How far a start under way has come."""
        self._watch = ProgressWatch()
        self._metrics = metrics
        self._max_backlog = max_backlog
        self._on_progress = on_progress
        self._state = EngineState.LOADING
        self._reason = "the engine is starting"
        self._draining = False
        self._routes: dict[str, Mailbox[Any]] = {}
        self.vocabulary = VocabularyGate(self._queue, self._end, lambda request_id: request_id in self._routes)
        """Goes before constrained requests."""
        self.adapters = ServedAdapters(self._queue)
        """Adapters that requests may ask for."""
        self.surveys = Surveys(self._queue)
        """Asks the engine who holds its KV cache."""
        self._outbox: asyncio.Queue[ClientFrame] = asyncio.Queue()
        self._settled = asyncio.Event()
        self._ends: deque[float] = deque(maxlen=64)
        self._load_seconds: float | None = None

    # -- state ---------------------------------------------------------------------------------------------------

    @property
    def state(self) -> EngineState:
        """The present state; draining hides all but death."""
        if self._draining and self._state is not EngineState.DEAD:
            return EngineState.DRAINING
        return self._state

    @property
    def in_flight(self) -> int:
        """Sequences sent to the engine that have not ended."""
        return len(self._routes)

    @property
    def unsent(self) -> int:
        """Frames that wait for the engine to take them."""
        return self._outbox.qsize()

    @property
    def loading(self) -> bool:
        """Whether the present engine, or the next one, is not up yet; also while draining."""
        return self._state is EngineState.LOADING

    def progress_age(self) -> float:
        """Seconds for which the engine had work, or frames to read, and showed no progress; 0 while it has none, or
        loads."""
        return self._watch.age(has_work=bool(self._routes))

    def load_age(self) -> float:
        """Seconds since the engine that loads said how far it is; 0 while none loads."""
        return self._watch.load_age() if self.loading else 0.0

    def completion_rate(self) -> float | None:
        """Sequences that ended of late, a second; None before there is anything to measure."""
        if len(self._ends) < _MIN_ENDS:
            return None
        return len(self._ends) / max(time.monotonic() - self._ends[0], _MIN_RATE_WINDOW)

    def readiness(self) -> tuple[bool, str]:
        """Whether new requests are taken, and why not (a phrase; empty when they are)."""
        if self._draining:
            return False, "the server is shutting down"
        return self._state is EngineState.READY, self._reason

    def unavailable(self) -> RequestError | None:
        """The 503 for a request that comes now, or None when the engine takes requests."""
        ok, reason = self.readiness()
        if ok:
            return None
        return RequestError(
            f"The model is not available: {reason}.",
            status=503,
            type="server_error",
            code=f"engine_{self.state.value}",
            retry_after=self._retry_after(),
        )

    def check_available(self) -> EngineReady:
        """What the engine is. Raises :class:`RequestError` 503 when it takes no requests now."""
        if (error := self.unavailable()) is not None:
            raise error
        if self.ready is None:
            raise RuntimeError("ready without EngineReady")
        return self.ready

    def check_running(self) -> None:
        """Raises :class:`RequestError` 503 when there is no engine. One that drains works on what was let in before."""
        error = self.unavailable()
        if error is not None and self._state is not EngineState.READY:
            raise error

    def drain(self) -> None:
        """Refuses new requests from here on; those in flight go on."""
        self._draining = True
        self._metrics.observe_state(self.state)

    def fail(self, reason: str) -> None:
        """There will be no engine any more."""
        self._change(EngineState.DEAD, reason)

    def retire(self) -> None:
        """There is no engine from here on, until the next connection is served."""
        self.ready = self.progress = self.slowest_token = None
        self._change(EngineState.IDLE, "the model is not loaded")

    async def wait_ready(self) -> EngineReady:
        """Waits for the engine to come up. Raises :class:`EngineFailedError` when it never will."""
        await self._settled.wait()
        if self._state is EngineState.DEAD or self.ready is None:
            raise EngineFailedError(self._reason)
        return self.ready

    # -- requests ------------------------------------------------------------------------------------------------

    @overload
    def submit(self, requests: Sequence[GenerateRequest]) -> Mailbox[EngineOutput]: ...
    @overload
    def submit(self, requests: Sequence[EncodeRequest]) -> Mailbox[EncodeOutput]: ...
    def submit(self, requests: Sequence[GenerateRequest] | Sequence[EncodeRequest]) -> Mailbox[Any]:
        """Sends the sequences of one request; their outputs all come to the mailbox that is returned.

        Raises:
            RequestError: 503, there is no engine. Nothing was sent.
        """
        self.check_running()
        encodes = any(isinstance(request, EncodeRequest) for request in requests)
        mailbox: Mailbox[Any] = Mailbox(EncodeOutput) if encodes else Mailbox(EngineOutput)
        for request in requests:
            self._send(request)
            self._routes[request.request_id] = mailbox
        return mailbox

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forgets these sequences and frees what they hold in the engine. Ids that ended already are ignored."""
        known = [request_id for request_id in request_ids if self._forget(request_id)]
        if known:
            self._send(AbortRequests(known))

    def shut_down(self) -> None:
        """Asks the engine to leave."""
        self._send(Shutdown())

    def _send(self, frame: ClientFrame) -> None:
        if not self.vocabulary.holds(frame):
            self._queue(frame)

    def _queue(self, frame: ClientFrame) -> None:
        self._watch.note_sent(has_work=bool(self._routes))
        self._outbox.put_nowait(frame)

    # -- connection ----------------------------------------------------------------------------------------------

    async def serve(self, connection: EngineConnection, stamp: ProgressStamp | None = None) -> str | None:
        """Serves one connection until it ends, then answers what is in flight. Closes the connection.

        Args:
            stamp: where the engine notes its progress; without one its frames are the only sign of it.

        Returns:
            Why it ended, if the engine said so or did not keep to the protocol; None if it is just gone.
        """
        self._outbox = asyncio.Queue()
        self.vocabulary.reset()
        self.surveys.reset()
        self._watch.begin(stamp)
        self._change(EngineState.LOADING, "the engine is loading" if self.ready is None else "the engine is restarting")
        reader = asyncio.create_task(self._read(connection))
        writer = asyncio.create_task(self._write(connection))
        try:
            await asyncio.wait([reader, writer], return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                writer.result()  # raises, unless there is nobody to write to any more: then the reader knows more
            return await reader
        finally:
            for task in (reader, writer):
                task.cancel()
            self._lose_engine()  # before anything is awaited: a second cancellation must not leave requests waiting
            try:
                await asyncio.gather(reader, writer, return_exceptions=True)
            finally:
                await connection.close()

    async def _read(self, connection: EngineConnection) -> str | None:
        last_words: str | None = None
        while True:
            try:
                frame = await connection.receive()
            except ChannelClosedError:
                return last_words
            except ConnectionError as error:
                return last_words or str(error)
            self._watch.last_frame = time.monotonic()
            match frame:
                case OutputFrame():
                    started = time.perf_counter()
                    self._route(frame)
                    # A burst of frames must not make its readers look slow: let them run. Each sends what it got
                    # before it waits again, unless its client's socket is full.
                    await asyncio.sleep(0)
                    self._metrics.observe_delivery(time.perf_counter() - started)
                case Holdings():
                    self.surveys.take(frame)
                case LoadProgress():
                    self._note_progress(frame)
                case EngineReady():
                    self._note_ready(frame)
                case AdapterOutcome():
                    self.adapters.settle(frame)
                case EngineFatal(message):
                    last_words = message

    async def _write(self, connection: EngineConnection) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                frame = await self._outbox.get()
                try:
                    await connection.send(frame)
                except (ValueError, TypeError, OverflowError, msgspec.MsgspecError) as error:
                    # It cannot be put into a frame. That must not end the connection for everybody else.
                    if isinstance(frame, GenerateRequest | EncodeRequest):
                        self._end(frame.request_id, EngineError("invalid_request", str(error)))

    def _route(self, frame: OutputFrame) -> None:
        self.stats = frame.stats
        self._metrics.observe_step(frame.stats, frame.steps)
        for step in frame.steps:
            self.slowest_token = max(self.slowest_token or 0.0, step.seconds / max(1, step.tokens))
        for encoded in frame.encoded:
            if (mailbox := self._routes.get(encoded.request_id)) is not None:
                mailbox.put(encoded)
                self._forget(encoded.request_id)
        for output in frame.outputs:
            mailbox = self._routes.get(output.request_id)
            if mailbox is None:
                continue  # aborted while its output was under way
            mailbox.put(output)
            if output.finish_reason is not None:
                self._forget(output.request_id)
            elif mailbox.tokens > self._max_backlog:
                self._drop_slow_reader(mailbox)

    def _drop_slow_reader(self, mailbox: Mailbox[Any]) -> None:
        request_ids = [request_id for request_id, other in self._routes.items() if other is mailbox]
        self.abort(request_ids)
        error = EngineError(
            "slow_consumer", f"The answer was not read for too long: over {self._max_backlog} tokens waited for it."
        )
        mailbox.fail(request_ids[0], error)

    def _end(self, request_id: str, error: EngineError) -> None:
        mailbox = self._routes.get(request_id)
        if mailbox is not None:
            mailbox.fail(request_id, error)
            self._forget(request_id)

    def _forget(self, request_id: str) -> bool:
        known = self._routes.pop(request_id, None) is not None
        if known:
            self._ends.append(time.monotonic())
        return known

    def _note_progress(self, progress: LoadProgress) -> None:
        self.progress = progress
        self._reason = f"the engine is loading ({progress.phase})"
        if self._on_progress is not None:
            self._on_progress(progress)

    def _note_ready(self, ready: EngineReady) -> None:
        self.ready = ready
        self.adapters.note_ready(ready.adapters)
        self.progress = None
        self._load_seconds = time.monotonic() - self._watch.started
        self._metrics.observe_ready(ready, self._load_seconds)
        self._change(EngineState.READY, "")

    def _lose_engine(self) -> None:
        self._watch.end()
        self.adapters.lose()
        self.surveys.reset()
        self.stats = EngineStats()
        self._metrics.observe_engine_lost()
        if self._state is EngineState.READY:
            self._change(EngineState.LOADING, "the engine stopped and is being restarted")
        error = EngineError("engine_restarted", "The engine stopped while it worked on this request.")
        for request_id in list(self._routes):
            self._end(request_id, error)

    def _change(self, state: EngineState, reason: str) -> None:
        self._state, self._reason = state, reason
        if state in (EngineState.LOADING, EngineState.IDLE):
            self._settled.clear()
        else:
            self._settled.set()
        self._metrics.observe_state(self.state)

    def _retry_after(self) -> float:
        """Seconds until a load as long as the last one is over; for another replica to answer when draining."""
        if self.state is EngineState.DRAINING:
            return 1.0
        expected = _LOADING_GUESS if self._load_seconds is None else self._load_seconds
        return max(1.0, expected - (time.monotonic() - self._watch.started))
