"""An engine in a thread of this process, the same as in a process of its own: for offline use and tests."""

from __future__ import annotations

import asyncio
import threading
from collections import deque

from app.contract.config import EngineConfig
from app.contract.frames import ClientFrame, EngineFrame
from app.engine.loop import BadFrame, MakeRunner, serve
from app.ipc import ChannelClosedError, decode_client_frame, decode_engine_frame, encode

OUTBOX_FRAMES = 1024
"""Frames that the client has not read, above which the engine stops stepping."""


class _ThreadPort:
    """:class:`~app.engine.loop.Port` between the engine's thread and an event loop in another."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inbox: deque[ClientFrame] = deque()
        self._outbox: deque[EngineFrame] = deque()
        self._woken = False
        self._reader: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None
        self._client_gone = False
        self._engine_gone = False

    # the engine's side

    @property
    def congested(self) -> bool:
        return len(self._outbox) > OUTBOX_FRAMES

    def poll(self, *, wait: bool, for_room: bool = False, timeout: float | None = None) -> list[ClientFrame | BadFrame]:
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._has_news(for_room=for_room), timeout)
                self._woken = False
            if self._client_gone:
                raise ChannelClosedError("the connection was closed")
            frames: list[ClientFrame | BadFrame] = list(self._inbox)
            self._inbox.clear()
            return frames

    def _has_news(self, *, for_room: bool) -> bool:
        return bool(self._inbox) or self._woken or self._client_gone or (for_room and not self.congested)

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def send(self, frame: EngineFrame) -> None:
        # The receiver gets a copy, as it would over a socket.
        copy = decode_engine_frame(encode(frame))
        with self._changed:
            if self._client_gone:
                raise ChannelClosedError("the connection was closed")
            self._outbox.append(copy)
            self._wake_reader()

    def flush(self, timeout: float) -> None:
        """Does nothing: frames are with the client as soon as they are sent."""

    def end(self) -> None:
        """Marks the engine as gone: a reader is told so after the last frame."""
        with self._changed:
            self._engine_gone = True
            self._wake_reader()

    def _wake_reader(self) -> None:
        if self._reader is None:
            return
        loop, future = self._reader
        self._reader = None
        try:
            loop.call_soon_threadsafe(_wake, future)
        except RuntimeError:  # its event loop is closed: nobody reads any more
            self._client_gone = True

    # the client's side

    def put(self, frame: ClientFrame) -> None:
        with self._changed:
            if self._engine_gone:
                raise ChannelClosedError("the engine is gone")
            self._inbox.append(frame)
            self._changed.notify_all()

    async def get(self) -> EngineFrame:
        while True:
            with self._changed:
                if self._outbox:
                    frame = self._outbox.popleft()
                    self._changed.notify_all()
                    return frame
                if self._engine_gone:
                    raise ChannelClosedError("the engine is gone")
                loop = asyncio.get_running_loop()
                future = loop.create_future()
                self._reader = (loop, future)
            await future

    def hang_up(self) -> None:
        with self._changed:
            self._client_gone = True
            self._changed.notify_all()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class InprocConnection:
    """An engine in a daemon thread, behind the interface of a connection to an engine process.

    One task receives; any task of any event loop may send. The first frames are the load's progress and
    :class:`~app.contract.frames.EngineReady`, or :class:`~app.contract.frames.EngineFatal`.
    """

    def __init__(self, config: EngineConfig, make_runner: MakeRunner) -> None:
        """Starts loading at once."""
        self._port = _ThreadPort()
        self._thread = threading.Thread(target=self._run, args=(config, make_runner), name="engine", daemon=True)
        self._thread.start()

    def _run(self, config: EngineConfig, make_runner: MakeRunner) -> None:
        try:
            serve(self._port, config, make_runner, None)
        finally:
            self._port.end()

    async def send(self, frame: ClientFrame) -> None:
        """Hands a frame to the engine. Raises ConnectionError when it is gone, :class:`msgspec.ValidationError` for a
        field of the wrong type."""
        self._port.put(decode_client_frame(encode(frame)))

    async def receive(self) -> EngineFrame:
        """The next frame. Raises ConnectionError after the last one."""
        return await self._port.get()

    async def close(self) -> None:
        """Ends the engine, whatever it is doing, after its current step."""
        self._port.hang_up()
        await asyncio.to_thread(self._thread.join)
