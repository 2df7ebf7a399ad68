"""Work on long texts: in threads, no more of it at once than fits the memory, and not for requests whose time is up."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from app.errors import RequestError

T = TypeVar("T")

CAPACITY = 1 << 20
"""Characters, or tokens, worked on at once. Tokenising takes some 300 bytes a token."""


class LongWork:
    """Runs work in threads, first come, first served, up to :data:`CAPACITY` characters at once.

    What is larger runs alone. Used from one event loop.
    """

    def __init__(self) -> None:
        self._free = CAPACITY
        self._threads = ThreadPoolExecutor(thread_name_prefix="long-text")
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def run(self, size: int, work: Callable[[], T], deadline: float | None = None) -> T:
        """The result of ``work``.

        Args:
            size: characters or tokens that it goes through.
            deadline: instant of ``time.monotonic`` at which nobody needs the result any more. Work that has not begun
                is dropped then; work that has goes on to its end, and counts until then.

        Raises:
            RequestError: 504, the deadline passed.
        """
        try:
            async with asyncio.timeout_at(deadline):
                return await self._run(min(size, CAPACITY), work)
        except TimeoutError:
            message = "The request was not done when its time was up."
            raise RequestError(message, status=504, type="server_error", code="deadline_exceeded") from None

    async def _run(self, size: int, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        await self._take(size)

        def give_back(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(self._give_back, size)

        running = self._threads.submit(work)
        running.add_done_callback(give_back)  # of the thread: who waits for it may have gone
        return await asyncio.wrap_future(running)

    async def _take(self, size: int) -> None:
        if self._free >= size and not self._waiting:
            self._free -= size
            return
        granted = asyncio.get_running_loop().create_future()
        self._waiting.append((size, granted))
        try:
            await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                with contextlib.suppress(ValueError):  # it is gone already if its turn came since
                    self._waiting.remove((size, granted))
                self._grant()  # it may have kept smaller ones behind it waiting
            else:
                self._give_back(size)
            raise

    def _give_back(self, size: int) -> None:
        self._free += size
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            size, granted = self._waiting.popleft()
            if granted.cancelled():
                continue
            self._free -= size
            granted.set_result(None)
