"""Which models are loaded: as many as fit the memory, and those used last."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

from app.duration import FOREVER
from app.serving.memory import MemoryBudget
from app.serving.model_source import NoRoomError
from app.serving.resident import Resident

_LOOK_AGAIN = 1.0
"""Seconds after which one that waits for memory looks again: other programs may have freed some."""

PATIENCE = 5.0
"""Seconds for which a model that is in use without a gap is left so, while another waits for its memory."""


class Residency:
    """The models that come and go, and the memory that they share. Made on the event loop that it is used on.

    Args:
        clock: seconds, for keep-alive times.
        patience: seconds after which a model that others use without a gap makes room for one that is waited for.
    """

    def __init__(
        self, budget: MemoryBudget, *, clock: Callable[[], float] = time.monotonic, patience: float = PATIENCE
    ) -> None:
        self.closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when nothing is loaded any more."""
        self.opened = asyncio.Event()
        """Set when text sides may be made."""
        self.now = clock
        self._budget = budget
        self._patience = patience
        self._residents: list[Resident] = []
        self._turn = asyncio.Lock()
        """One at a time gets memory, in the order in which they asked."""
        self._changed = asyncio.Event()
        self._looks_soon = False
        self._timer: asyncio.TimerHandle | None = None

    def __iter__(self) -> Iterator[Resident]:
        """The models."""
        return iter(self._residents)

    def add(self, resident: Resident) -> None:
        """Takes one more in."""
        self._residents.append(resident)

    def drain(self) -> None:
        """Loads nothing from here on, and refuses who waits; models that are in use go on."""
        if not self.closing.done():
            self.closing.set_result(None)

    async def stop(self) -> None:
        """Ends all engines."""
        self.drain()
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(*(resident.life.close() for resident in self))

    # -- keep-alive ----------------------------------------------------------------------------------------------

    def note_change(self) -> None:
        """Memory or work of a resident has changed."""
        self._changed.set()
        if not self._looks_soon and not self.closing.done():
            self._looks_soon = True
            asyncio.get_running_loop().call_soon(self._look)

    def expire(self) -> None:
        """Unloads what has been without work for its time."""
        for resident in self:
            if resident.is_idle and resident.expires <= self.now():
                resident.unload("keep_alive")

    def _look(self) -> None:
        """Unloads what is due, and comes back when something is due next."""
        self._looks_soon = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.closing.done():
            return
        self.expire()
        next_end = min((resident.expires for resident in self if resident.is_idle), default=FOREVER)
        if next_end < FOREVER:
            delay = max(0.0, next_end - self.now())
            self._timer = asyncio.get_running_loop().call_later(delay, self._look)

    # -- memory --------------------------------------------------------------------------------------------------

    async def make_for(self, resident: Resident) -> None:
        """Gets a resident the memory that it needs: unloads others without work, least recently used first, and waits
        for those that have some. After a while one of these takes no more requests until it has gone.

        Raises:
            NoRoomError: it can never have it, or nobody here could give it.
        """
        life, most = resident.life, self._budget.most()
        if life.needed > most:
            raise NoRoomError(
                f"it needs about {_gib(life.needed)} of memory, and models have {_gib(most)}: raise model_memory, or "
                "lower kv_cache_memory",
                passes=False,
            )
        async with self._turn:
            began = self.now()
            asked: Resident | None = None
            try:
                while not self._fits(resident):
                    if (victim := self._least_recent(in_use=False)) is not None:
                        await asyncio.wait({victim.unload("memory")})
                        continue
                    if not any(other.life.promised for other in self):
                        raise self._no_room(resident)
                    if asked is None and self.now() - began >= self._patience:
                        asked = self._least_recent(in_use=True)
                        if asked is not None:
                            asked.take_no_requests()
                    await self._change()
                life.promised = life.needed
            finally:
                if asked is not None:
                    asked.take_requests()

    def _no_room(self, resident: Resident) -> NoRoomError:
        needed, left = _gib(resident.life.needed), _gib(max(0, self._left()))
        return NoRoomError(f"it needs about {needed} of memory, and other programs leave {left}", passes=True)

    async def _change(self) -> None:
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(_LOOK_AGAIN, max(self._patience, 0.01))):
                await self._changed.wait()

    def _fits(self, resident: Resident) -> bool:
        if any(other.life.fills_a_gpu for other in self if other is not resident):
            return False
        return resident.life.needed <= self._left()

    def _left(self) -> int:
        return self._budget.left([other.life.share for other in self if other.life.promised])

    def _least_recent(self, *, in_use: bool) -> Resident | None:
        """The loaded model that was used least recently, of those in use or of those without work.

        One that was just loaded, for requests that have not come to use it yet, is neither.
        """
        found = [other for other in self if (other.is_used if in_use else other.is_idle)]
        return min(found, key=lambda other: other.last_used, default=None)


def _gib(nbytes: int) -> str:
    return f"{nbytes / (1 << 30):.2f} GiB"
