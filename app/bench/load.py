"""Keeps a server busy: so many requests at once, or so many a second."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from app.bench.client import RequestResult
from app.bench.prompts import Prompt

Send = Callable[[int, Prompt, float, float | None], Awaitable[RequestResult]]
"""``send(index, prompt, origin, scheduled)``: see :meth:`app.bench.client.Client.send`."""


@dataclass
class LoadRun:
    """A run, under way or over."""

    results: list[RequestResult] = field(default_factory=list)
    """Results of the requests, in the order in which they ended."""
    num_started: int = 0
    num_output_tokens: int = 0
    elapsed: float = 0.0
    """Seconds from the start to the last end."""
    interrupted: bool = False

    @property
    def num_running(self) -> int:
        """Requests under way; after the run, those that an interruption cut off."""
        return self.num_started - len(self.results)


class Load:
    """One run: requests go out, results come in."""

    def __init__(
        self,
        send: Send,
        prompts: Iterable[Prompt],
        *,
        duration: float | None = None,
        on_change: Callable[[LoadRun], None] = lambda _: None,
    ) -> None:
        """
        Args:
            prompts: one request each; the run is over when they are.
            duration: seconds after which no request starts; those under way are finished and counted.
            on_change: called when a request begins and when it ends.
        """
        self.run = LoadRun()
        self._send = send
        self._prompts: Iterator[tuple[int, Prompt]] = enumerate(prompts)
        self._duration = duration if duration is not None else float("inf")
        self._on_change = on_change
        self._origin = 0.0

    async def closed(self, concurrency: int, stop: asyncio.Event | None = None) -> LoadRun:
        """Keeps ``concurrency`` requests under way; a set ``stop`` ends the run at once."""
        return await self._until(self._closed(concurrency), stop)

    async def open(self, arrivals: Iterable[float], stop: asyncio.Event | None = None) -> LoadRun:
        """Sends a request at each of ``arrivals``, in seconds from the start; a set ``stop`` ends the run at once."""
        return await self._until(self._open(arrivals), stop)

    async def _until(self, work: Coroutine[Any, Any, None], stop: asyncio.Event | None) -> LoadRun:
        self._origin = time.perf_counter()
        working = asyncio.create_task(work)
        stopping = asyncio.create_task((stop or asyncio.Event()).wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            self.run.interrupted = not working.done()
        finally:
            working.cancel()
            stopping.cancel()
            await asyncio.wait({working, stopping})
        self.run.elapsed = self._now() if self.run.interrupted else self._last_end()
        if not working.cancelled():
            working.result()
        return self.run

    async def _closed(self, concurrency: int) -> None:
        async with asyncio.TaskGroup() as workers:
            for _ in range(concurrency):
                workers.create_task(self._work())

    async def _work(self) -> None:
        while self._now() < self._duration:
            following = next(self._prompts, None)
            if following is None:
                return
            await self._one(*following, scheduled=None)

    async def _open(self, arrivals: Iterable[float]) -> None:
        due = itertools.takewhile(lambda arrival: arrival < self._duration, arrivals)
        async with asyncio.TaskGroup() as requests:
            for scheduled, (index, prompt) in zip(due, self._prompts, strict=False):
                await asyncio.sleep(scheduled - self._now())
                requests.create_task(self._one(index, prompt, scheduled=scheduled))

    async def _one(self, index: int, prompt: Prompt, *, scheduled: float | None) -> None:
        self.run.num_started += 1
        self._on_change(self.run)
        result = await self._send(index, prompt, self._origin, scheduled)
        self.run.results.append(result)
        self.run.num_output_tokens += result.output_tokens
        self.run.elapsed = self._now()
        self._on_change(self.run)

    def _now(self) -> float:
        return time.perf_counter() - self._origin

    def _last_end(self) -> float:
        return max((result.started + result.e2el for result in self.run.results), default=0.0)
