"""Who holds the engine's KV cache: asked when somebody wants to know, at most once at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from app.contract.frames import ClientFrame, Holdings, Survey

PATIENCE = 0.5
"""Seconds that an asker waits: the engine answers between two steps, and one step may take longer."""


class Surveys:
    """Asks one engine, and remembers what it said last.

    Args:
        queue: queues a frame for the engine that is connected.
    """

    def __init__(self, queue: Callable[[ClientFrame], None]) -> None:
        self._queue = queue
        self._last: Holdings | None = None
        self._under_way: asyncio.Future[None] | None = None

    async def ask(self) -> Holdings | None:
        """The engine's holdings: as they are now, or, if it is busy for longer than that, as it told last.

        None while this engine has said nothing yet. Call it only while an engine is connected.
        """
        if self._under_way is None:
            self._under_way = asyncio.get_running_loop().create_future()
            self._queue(Survey())
        await asyncio.wait([self._under_way], timeout=PATIENCE)
        return self._last

    def take(self, holdings: Holdings) -> None:
        """Takes the engine's answer."""
        self._last = holdings
        self._settle()

    def reset(self) -> None:
        """Forgets what an engine said that is gone; whoever waits for it waits no longer."""
        self._last = None
        self._settle()

    def _settle(self) -> None:
        if self._under_way is not None and not self._under_way.done():
            self._under_way.set_result(None)
        self._under_way = None
