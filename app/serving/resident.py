"""A model that comes and goes, from the requests' side: they wait for it, use it, and it stays for a while."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

from app.duration import FOREVER
from app.errors import RequestError
from app.serving.engine_client import EngineClient, EngineState
from app.serving.lifecycle import Lifecycle
from app.serving.model_source import ModelSource
from app.telemetry.residents import ResidentMetrics

CLIENT_LEFT = "client_left"
"""Reason of a request that ended while it waited for its model."""


class Room(Protocol):
    """Where residents live: :class:`app.serving.residency.Residency`."""

    closing: asyncio.Future[None]
    """Done when nothing is loaded any more."""
    opened: asyncio.Event
    """Set when text sides may be made."""

    def now(self) -> float:
        """Seconds on the clock of keep-alive times."""

    async def make_for(self, resident: Resident) -> None:
        """Gets a resident the memory that it needs, and promises it. Raises :class:`NoRoomError`."""

    def note_change(self) -> None:
        """To be called when memory or work of a resident has changed."""


class Resident:
    """One model, and the requests that use it or wait for it.

    Args:
        name: the model's own name.
        keep_alive: seconds that it stays loaded without work.
        max_waiting: requests that may wait for it.
    """

    def __init__(
        self,
        name: str,
        source: ModelSource,
        client: EngineClient,
        room: Room,
        metrics: ResidentMetrics,
        *,
        keep_alive: float,
        max_waiting: int,
    ) -> None:
        self.name = name
        self.is_preloading = False
        """Whether it is being loaded for the server's start."""
        self.last_used = 0.0
        self.expires = FOREVER
        """Instant at which it is unloaded, if it has no work until then."""
        self._client = client
        self._room = room
        self._metrics = metrics
        self._default_keep_alive = self._keep_alive = keep_alive
        self._max_waiting = max_waiting
        self._uses = 0
        """Requests that use it."""
        self._waiting = 0
        """Requests that wait for it, and the server's own wish to have it loaded."""
        self._yielded: asyncio.Future[None] | None = None
        """Done when it takes requests again, or goes: until then it takes none, so that another gets its memory."""
        self.life = Lifecycle(
            name,
            source,
            client,
            metrics,
            now=room.now,
            opened=room.opened,
            make_room=lambda: room.make_for(self),
            on_change=self._settle,
        )

    @property
    def has_work(self) -> bool:
        """Whether requests use it, or wait for it and will get it before others get its memory."""
        return self._uses > 0 or self._client.in_flight > 0 or (self._waiting > 0 and self._yielded is None)

    @property
    def is_used(self) -> bool:
        """Whether it is loaded and requests use it."""
        return self.life.is_loaded and self._uses > 0

    @property
    def is_idle(self) -> bool:
        """Whether it is loaded and could go now."""
        return self.life.is_loaded and not self.has_work

    @property
    def expires_in(self) -> float:
        """Seconds until it is unloaded; while it works, those that it has after its last request."""
        return self._keep_alive if self.has_work else self.expires - self._room.now()

    @contextlib.asynccontextmanager
    async def in_use(
        self, ends: float | None, *, endpoint: str, keep_alive: float | None = None
    ) -> AsyncIterator[None]:
        """Keeps the model loaded while the block runs; waits until it is. See :meth:`Served.in_use`."""
        try:
            if self._room.closing.done() or not self._takes_requests:
                await self._wait(ends)
            else:
                self._uses += 1
        except RequestError as error:
            self._metrics.observe_refusal(endpoint, error.code or "error")
            raise
        except asyncio.CancelledError:
            self._metrics.observe_refusal(endpoint, CLIENT_LEFT)
            raise
        try:
            yield
        finally:
            self._uses -= 1
            self._keep_alive = self._default_keep_alive if keep_alive is None else keep_alive
            self._settle()

    def preload(self) -> asyncio.Task[None]:
        """Loads it although no request asks for it; done when that has succeeded or failed."""
        self._waiting += 1
        self.is_preloading = True

        async def load() -> None:
            try:
                while not (self._takes_requests or self.life.failure or self._room.closing.done()):
                    await self._next_step()
            finally:
                self._waiting -= 1
                self.is_preloading = False
                self._settle()

        return asyncio.create_task(load(), name=f"preload {self.name}")

    def expire_soon(self) -> None:
        """Has the model unloaded as soon as it has no work, if it is loaded."""
        if self.life.is_loaded:
            self._keep_alive = 0.0
            self._settle()

    def unload(self, why: str) -> asyncio.Task[None]:
        """Ends its engine; see :meth:`Lifecycle.unload`. Raises RuntimeError if it has work, or no engine."""
        if not self.is_idle:
            raise RuntimeError(f"{self.name} is not to be unloaded now")
        self.take_requests()
        self._keep_alive = self._default_keep_alive
        return self.life.unload(why)

    def take_no_requests(self) -> None:
        """Lets requests wait until the model has gone, or :meth:`take_requests` is called; those that use it go on."""
        if self._yielded is None:
            self._yielded = asyncio.get_running_loop().create_future()

    def take_requests(self) -> None:
        """Ends what :meth:`take_no_requests` began."""
        if self._yielded is not None:
            self._yielded.set_result(None)
            self._yielded = None

    @property
    def _takes_requests(self) -> bool:
        return self.life.is_loaded and self._client.state is EngineState.READY and self._yielded is None

    async def _wait(self, ends: float | None) -> None:
        """Waits until the model takes requests, and counts one that uses it. Raises as :meth:`Served.in_use`."""
        self._check()
        if self._waiting >= self._max_waiting:
            message = f"The server is overloaded: {self._waiting} requests wait for the model {self.name!r}."
            raise RequestError(message, status=429, type="overloaded_error", code="overloaded", retry_after=1.0)
        self._waiting += 1
        try:
            async with asyncio.timeout_at(ends):
                while not self._takes_requests:
                    await self._next_step()
                    self._check()
            self._uses += 1
        except TimeoutError:
            reason = self.life.reason or "another model gets its memory"
            message = f"The model {self.name!r} was not loaded when the request's time was up: {reason}."
            raise RequestError(message, status=504, type="server_error", code="deadline_exceeded") from None
        finally:
            self._waiting -= 1
            self._settle()

    def _check(self) -> None:
        """Raises :class:`RequestError` 503 where no waiting helps."""
        if self._room.closing.done():
            raise self._unavailable("the server is shutting down", code="engine_draining", retry_after=1.0)
        failure = self.life.failure
        if failure is not None and (left := failure.until - self._room.now()) > 0:
            raise self._unavailable(failure.reason, code="engine_failed", retry_after=left if failure.passes else None)

    def _unavailable(self, reason: str, *, code: str, retry_after: float | None) -> RequestError:
        message = f"The model {self.name!r} is not available: {reason}."
        return RequestError(message, status=503, type="server_error", code=code, retry_after=retry_after)

    async def _next_step(self) -> None:
        """Waits for what comes next before the model takes requests; it is begun if it has not been."""
        step = self._yielded if self._yielded is not None else self.life.step()
        await asyncio.wait({step, self._room.closing}, return_when=asyncio.FIRST_COMPLETED)

    def _settle(self) -> None:
        """What follows when work, or a step, has ended."""
        self._room.note_change()
        if self.has_work:
            return
        self.last_used = self._room.now()
        if self.life.is_loaded:
            self.expires = self.last_used + self._keep_alive
            if self._keep_alive <= 0:
                self.unload("keep_alive")
        elif self._waiting == 0:
            self.life.give_up()
