"""Tells an engine process the tokenizer's vocabulary, before the first constrained request and not earlier."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from app.contract.frames import ClientFrame, EngineError, Vocabulary
from app.contract.request import GenerateRequest

_log = structlog.get_logger("tuili.engine")


class VocabularyGate:
    """Holds constrained requests back until the vocabulary has gone before them.

    Args:
        send: queues a frame.
        fail: ends a request with an error.
        wanted: whether somebody still waits for a request.
    """

    def __init__(
        self,
        send: Callable[[ClientFrame], None],
        fail: Callable[[str, EngineError], None],
        wanted: Callable[[str], bool],
    ) -> None:
        self.source: Callable[[], Vocabulary] | None = None
        """Makes the vocabulary, in a thread."""
        self._send, self._fail, self._wanted = send, fail, wanted
        self._sent = False
        self._held: list[GenerateRequest] = []
        self._task: asyncio.Task[None] | None = None

    def reset(self) -> None:
        """There is another engine, which knows nothing yet."""
        if self._task is not None:
            self._task.cancel()
        self._task, self._sent, self._held = None, False, []

    def holds(self, frame: ClientFrame) -> bool:
        """Whether a frame is held back; it is sent when the vocabulary is."""
        if self._sent or not isinstance(frame, GenerateRequest) or not frame.constraint:
            return False
        self._held.append(frame)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._deliver())
        return True

    async def _deliver(self) -> None:
        try:
            if self.source is None:
                raise RuntimeError("nobody set where the vocabulary comes from")
            vocabulary = await asyncio.to_thread(self.source)
        except Exception:  # noqa: BLE001 - whatever it is, those who wait for it are told, and the next one tries again
            _log.exception("vocabulary_unavailable")
            error = EngineError("engine_error", "The tokenizer could not be read, which grammars need.")
            held, self._held, self._task = self._held, [], None
            for frame in held:
                self._fail(frame.request_id, error)
            return
        self._sent = True
        self._send(vocabulary)
        held, self._held, self._task = self._held, [], None
        for frame in held:
            if self._wanted(frame.request_id):
                self._send(frame)
