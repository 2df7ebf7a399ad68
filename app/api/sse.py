"""Answers in pieces: server-sent events, or what another protocol makes of a stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Self

from starlette.datastructures import MutableHeaders
from starlette.types import Send

COMMENT = b": keep-alive\n\n"
DATA_EVENT = b"data: %b\n\n"
"""An event that has data alone, a single line: ``DATA_EVENT % data``."""
EVENT_STREAM = "text/event-stream; charset=utf-8"
_HEADERS = {
    "content-type": EVENT_STREAM,
    "cache-control": "no-cache",
    # A proxy that buffers would turn a stream into one late answer.
    "x-accel-buffering": "no",
}


class EventStream:
    """Events over one response.

    The response begins with the first event, so that whatever fails before still gets its proper status; a client that
    waits longer than the keep-alive interval gets the headers and comment lines meanwhile.
    """

    def __init__(self, send: Send, headers: Mapping[str, str], *, comment: bytes = COMMENT) -> None:
        """
        Args:
            headers: headers besides those of every stream, or in place of them.
            comment: bytes that are sent in silence; clients skip them.
        """
        self._send = send
        self._comment = comment
        self.headers = {**_HEADERS, **headers}
        """May be added to until the response begins."""
        self._lock = asyncio.Lock()
        self._clock = asyncio.get_running_loop().time
        self._last_write = self._clock()
        self.started = False
        """The status is out: errors can only be events from here on."""
        self.ended = False

    async def send(self, frame: bytes, *, more: bool = True) -> None:
        """Sends one event, the empty line behind it included.

        Args:
            more: whether the response goes on.
        """
        async with self._lock:  # events of several prompts, comments: never into each other
            if not self.started:
                raw = MutableHeaders(self.headers).raw
                await self._send({"type": "http.response.start", "status": 200, "headers": raw})
                self.started = True  # not before: a comment may be cancelled while it waits for the client to read
            await self._send({"type": "http.response.body", "body": frame, "more_body": more})
            self._last_write = self._clock()

    async def end(self) -> None:
        """Ends the response."""
        self.ended = True
        await self.send(b"", more=False)

    @contextlib.asynccontextmanager
    async def kept_alive(self, interval: float) -> AsyncIterator[Self]:
        """Sends a comment after each ``interval`` seconds of silence while the block runs; 0 sends none."""
        if not interval:
            yield self
            return
        ticker = asyncio.create_task(self._tick(interval))
        try:
            yield self
        finally:
            ticker.cancel()
            # A client that cannot be written to shows at the next event, too.
            await asyncio.gather(ticker, return_exceptions=True)

    async def _tick(self, interval: float) -> None:
        while True:
            silent = self._clock() - self._last_write
            if silent >= interval:
                await self.send(self._comment)
                silent = 0.0
            await asyncio.sleep(interval - silent)
