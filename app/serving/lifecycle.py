"""How a model comes and goes: its files, its memory, its engine; one step at a time, each a task."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import structlog

from app.contract.frames import LoadProgress
from app.duration import FOREVER
from app.serving.daemon_thread import in_daemon_thread
from app.serving.engine_client import EngineClient, EngineFailedError, EngineState
from app.serving.memory import PROCESS_BYTES, Share, taken_by
from app.serving.model_source import Engine, Failure, ModelSource, NoRoomError
from app.serving.states import OF_ENGINE, ModelState
from app.store import StoreError
from app.store.progress import RecordedProgress
from app.telemetry.residents import ResidentMetrics

if TYPE_CHECKING:
    from app.serving.generator import Generator

RETRY_SECONDS = 30.0
"""Seconds after a load that failed in which requests get its reason; then one tries again."""
_NO_ROOM_SECONDS = 1.0
"""The same where other programs have the memory."""

_log = structlog.get_logger("tuili.models")


class Lifecycle:
    """Where one model stands, and what brings it on.

    Args:
        name: the model's own name.
        now: seconds on the clock of keep-alive times.
        opened: set when text sides may be made.
        make_room: gets the model the memory that it needs, and promises it. Raises :class:`NoRoomError`.
        on_change: called when a step has ended, or the engine was lost.
    """

    def __init__(
        self,
        name: str,
        source: ModelSource,
        client: EngineClient,
        metrics: ResidentMetrics,
        *,
        now: Callable[[], float],
        opened: asyncio.Event,
        make_room: Callable[[], Awaitable[None]],
        on_change: Callable[[], None],
    ) -> None:
        self.client = client
        self.generator: Generator | None = None
        """The text side; it stays when the engine goes."""
        self.failure: Failure | None = None
        """Why the last load failed, or how its engine was lost."""
        self.needed = 0
        """Bytes of memory that it needs: by its shapes, or, once it was loaded, what it was seen to take. Of what is
        loaded as the server starts it is a guess: its engine is up almost as soon as another process could tell."""
        self.promised = 0
        """Bytes that are its own now."""
        self.begun = asyncio.Event()
        """Set when its first load goes on in another process, or is about to take long."""
        self._name = name
        self._source = source
        self._metrics = metrics
        self._now = now
        self._opened = opened
        self._make_room = make_room
        self._on_change = on_change
        self._pull = RecordedProgress()
        self._engine: Engine | None = None
        self._step: asyncio.Task[None] | None = None
        self._waits_for_memory = False
        client.retire()
        self._enter(ModelState.IDLE)

    # -- where it stands -----------------------------------------------------------------------------------------

    @property
    def state(self) -> ModelState:
        """Where the model stands."""
        return OF_ENGINE[self.client.state] if self.is_loaded else self._stage

    @property
    def is_loaded(self) -> bool:
        """Whether it has an engine, be it one that is being restarted."""
        return self._stage is ModelState.READY

    @property
    def reason(self) -> str:
        """Why it takes no requests, and how far it is; empty when it takes some."""
        loads = self._stage is ModelState.LOADING and self.client.state is EngineState.LOADING
        if self.is_loaded or loads:
            return self.client.readiness()[1]
        if self._stage is ModelState.FAILED and self.failure is not None:
            return self.failure.reason
        return (self._stage is ModelState.PULLING and self._pull.description) or self._reason

    @property
    def how_far(self) -> LoadProgress | None:
        """How far a pull or a load under way has come; None where there is none."""
        if self._stage is ModelState.PULLING and self._pull.description:
            return LoadProgress(phase=self._pull.description, done=self._pull.done, total=self._pull.total or 0)
        return self.client.progress if self._stage is ModelState.LOADING else None

    @property
    def share(self) -> Share:
        """Its memory."""
        return Share(self.promised, 0 if self._engine is None else taken_by(self._engine.pid))

    @property
    def fills_a_gpu(self) -> bool:
        """Whether it leaves no memory of a GPU to others."""
        ready = self.client.ready
        return self._source.takes_the_rest and ready is not None and ready.info.device.startswith("cuda")

    def stall_limit(self) -> float:
        """Seconds without progress after which its engine counts as stalled; 0 for never, and without one."""
        return 0.0 if self._engine is None else self._engine.stall_limit()

    # -- steps ---------------------------------------------------------------------------------------------------

    def step(self) -> asyncio.Task[None]:
        """The step under way; where there is none and no engine, a load begins. It raises nothing."""
        if self._step is None:
            wait = self._restarted() if self.is_loaded else self._load()
            self._step = asyncio.create_task(wait, name=f"load {self._name}")
        return self._step

    def give_up(self) -> None:
        """Nobody waits for it any more: a load that itself waits for memory ends."""
        if self._waits_for_memory and self._step is not None:
            self._step.cancel()

    def unload(self, why: str) -> asyncio.Task[None]:
        """Ends the engine of a model that is loaded; done when its memory is free.

        Args:
            why: ``keep_alive`` or ``memory``.
        """
        if self._step is not None:  # an engine that is being restarted
            self._step.cancel()
        self._enter(ModelState.UNLOADING, "it is being unloaded")
        self._step = asyncio.create_task(self._unload(why), name=f"unload {self._name}")
        return self._step

    async def close(self) -> None:
        """Ends its engine, whatever it does."""
        if self._step is not None:
            self._step.cancel()
            await asyncio.wait({self._step})
        await self._stop_engine()

    async def look(self) -> None:
        """Finds out whether the files of a model are here that was never loaded, and how much memory it will need."""
        failure: Failure | None = None
        here = False
        try:
            here = await in_daemon_thread(self._source.is_here)
        except StoreError as error:
            failure = Failure(str(error), self._now(), passes=False)
        if self._step is not None or self._stage is not ModelState.IDLE:
            return
        if here:
            await in_daemon_thread(self._source.needs)  # so that its first request does not wait for that
        elif failure is not None:
            self._fail(failure)
            self._enter(ModelState.FAILED)
        else:
            self._enter(ModelState.ABSENT, "its files are not here")

    async def read_text_side(self) -> None:
        """Makes the text side of a model whose files are here, if that can be; it does not load the model."""
        if self.generator is None and self._step is None:
            with contextlib.suppress(StoreError, ValueError):
                if await in_daemon_thread(self._source.is_here):
                    made = await in_daemon_thread(self._source.text_side)
                    self.generator = self.generator or made

    async def _restarted(self) -> None:
        try:
            await self.client.wait_ready()
        except EngineFailedError:
            pass  # :meth:`_lost` is told
        finally:
            self._end_step()

    async def _unload(self, why: str) -> None:
        try:
            await self._stop_engine()
        finally:
            self._metrics.observe_unload(why)
            _log.info("model unloaded", model=self._name, why=why)
            self._enter(ModelState.IDLE)
            self._end_step()

    async def _load(self) -> None:
        began, end = time.monotonic(), ModelState.IDLE
        failure: Failure | None = None
        self.failure = None
        try:
            await self._bring_up()
            end = ModelState.READY
            _log.info("model loaded", model=self._name, seconds=round(time.monotonic() - began, 3))
        except asyncio.CancelledError:
            _log.info("load given up", model=self._name)
        except NoRoomError as error:
            until = self._now() + _NO_ROOM_SECONDS if error.passes else FOREVER
            failure = Failure(str(error), until, passes=error.passes)
        except (StoreError, EngineFailedError, ValueError) as error:
            failure = Failure(str(error), self._now() + RETRY_SECONDS, passes=False)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this model's alone
            _log.exception("load failed", model=self._name)
            failure = Failure(f"{type(error).__name__}: {error}", self._now() + RETRY_SECONDS, passes=False)
        finally:
            self._waits_for_memory = False
            if end is not ModelState.READY:
                await self._stop_engine()
            if failure is not None:
                self._fail(failure)
                end = ModelState.FAILED
            self._metrics.observe_load(end, time.monotonic() - began)
            self._enter(end)
            self._end_step()

    async def _bring_up(self) -> None:
        """Files, memory, engine, text side.

        Raises:
            StoreError, NoRoomError, EngineFailedError, ValueError: one of them cannot be had.
        """
        source = self._source
        self._enter(ModelState.LOADING, "its files are being looked for")
        if not await in_daemon_thread(source.is_here):
            self._enter(ModelState.PULLING, "its files are being fetched")
            self.begun.set()
        await in_daemon_thread(lambda: source.fetch(self._pull))
        self.needed = self.needed or await in_daemon_thread(source.needs if self._opened.is_set() else source.guess)
        self._enter(ModelState.LOADING, "it waits for memory")
        self._waits_for_memory = True
        await self._make_room()
        self._waits_for_memory = False
        self.client.retire()
        self._enter(ModelState.LOADING, "its engine is starting")
        self._engine = source.engine(self._lost)
        self._engine.start()
        self.begun.set()
        await self._opened.wait()
        if self.generator is None:
            self.generator = await in_daemon_thread(source.text_side)
        ready = await self.client.wait_ready()
        promised = ready.info.weight_bytes + ready.info.kv_cache_bytes + PROCESS_BYTES
        self.needed = self.promised = max(promised, self.share.taken)

    def _lost(self, reason: str) -> None:
        """The supervisor gave up."""
        if not self.is_loaded:
            return  # whoever loads it is told by the client
        self._engine, self.promised = None, 0
        self._fail(Failure(reason, self._now() + RETRY_SECONDS, passes=True))
        self._enter(ModelState.FAILED)
        self._on_change()

    def _fail(self, failure: Failure) -> None:
        self.failure = failure
        _log.error("model failed", model=self._name, reason=failure.reason)

    async def _stop_engine(self) -> None:
        if self._engine is not None:
            await self._engine.stop()
        self._engine, self.promised = None, 0
        self.client.retire()

    def _enter(self, stage: ModelState, reason: str = "it is not loaded") -> None:
        self._stage, self._reason = stage, reason
        self._metrics.observe_state(stage)

    def _end_step(self) -> None:
        if self._step is asyncio.current_task():
            self._step = None
        self._on_change()
