"""Answers that clients may come back to: those that are kept, and those that are still being made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from app.answers.database import AnswerDatabase, AnswersError, KeptAnswer, StoreLimits

T = TypeVar("T")

MEMORY = "memory"
"""In place of a file's name: answers are kept in memory, until the server ends."""
NONE = "none"
"""In place of a file's name: no answers are kept."""
_SWEEP_INTERVAL = 60.0
"""Seconds after which reading looks for what is too old."""


class Answers:
    """Answers by id and owner. The database has a thread of its own, in which one thing is done after the other.

    Args:
        place: file of the database, ``memory`` or ``none``.

    Raises:
        AnswersError: the file cannot be used.
    """

    def __init__(self, place: str = NONE, limits: StoreLimits | None = None) -> None:
        self._under_way: dict[tuple[str, str], Callable[[], bytes]] = {}
        self._swept = time.monotonic()
        self._thread: ThreadPoolExecutor | None = None
        if place == NONE:
            return
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")
        path = None if place == MEMORY else Path(place)
        try:
            self._database = self._thread.submit(AnswerDatabase, path, limits or StoreLimits()).result()
        except AnswersError:
            self._thread.shutdown()
            raise
        self._thread.submit(self._database.expire, time.time())

    @property
    def are_kept(self) -> bool:
        """Whether answers are kept at all."""
        return self._thread is not None

    def close(self) -> None:
        """Waits for what is being written, and closes the file."""
        if self._thread is not None:
            self._thread.submit(self._database.close)
            self._thread.shutdown()
            self._thread = None

    async def put(self, answer: KeptAnswer) -> None:
        """Keeps an answer.

        Raises:
            AnswersError: it is not kept.
        """
        await self._run(lambda: self._database.put(answer, time.time()))

    async def get(self, answer_id: str, owner: str) -> KeptAnswer | None:
        """An answer; None where the owner has none of that id, or no longer. Raises :class:`AnswersError`."""
        if self._thread is None:
            return None
        self._sweep()
        return await self._run(lambda: self._database.get(answer_id, owner, time.time()))

    async def conversation(self, answer_id: str, owner: str) -> list[tuple[bytes, bytes]] | None:
        """Input and body of each answer of a conversation, the given one last; None where there is no such answer.

        Raises:
            ConversationTooLongError: they are more than the limits allow.
            AnswersError: they cannot be read.
        """
        if self._thread is None:
            return None
        self._sweep()
        return await self._run(lambda: self._database.conversation(answer_id, owner, time.time()))

    async def delete(self, answer_id: str, owner: str) -> bool:
        """Removes an answer; whether there was one. Raises :class:`AnswersError`."""
        if self._thread is None:
            return False
        return await self._run(lambda: self._database.delete(answer_id, owner, time.time()))

    def begin(self, answer_id: str, owner: str, body: Callable[[], bytes]) -> None:
        """Lets an answer be found while it is made.

        Args:
            body: makes JSON of the answer as far as it has come.
        """
        self._under_way[owner, answer_id] = body

    def end(self, answer_id: str, owner: str) -> None:
        """The answer is no longer made. Harmless if it never was."""
        self._under_way.pop((owner, answer_id), None)

    def under_way(self, answer_id: str, owner: str) -> bytes | None:
        """JSON of an answer that is still being made, as far as it has come; None where there is none."""
        body = self._under_way.get((owner, answer_id))
        return None if body is None else body()

    def _sweep(self) -> None:
        """Removes now and then what is too old, where nothing is written that would."""
        now = time.monotonic()
        if self._thread is not None and now - self._swept >= _SWEEP_INTERVAL:
            self._swept = now
            self._thread.submit(self._database.expire, time.time())

    async def _run(self, work: Callable[[], T]) -> T:
        if self._thread is None:
            raise AnswersError("no answers are kept")
        # What was begun is finished: an answer whose client leaves is kept, too.
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))
