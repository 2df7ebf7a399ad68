"""Connections to an engine."""

from __future__ import annotations

import contextlib
import socket
from typing import Protocol, Self

import msgspec

from app.contract.config import EngineConfig
from app.contract.frames import ClientFrame, EngineFrame
from app.ipc import AsyncFrameChannel, decode_engine_frame, encode


class EngineConnection(Protocol):
    """A connection to an engine: a socket to its process, or the same engine in a thread of this one."""

    async def send(self, frame: ClientFrame) -> None:
        """Hands a frame over. Raises :class:`ConnectionError` when the engine is gone."""

    async def receive(self) -> EngineFrame:
        """The engine's next frame. Raises :class:`ConnectionError` when the engine is gone."""

    async def close(self) -> None:
        """Ends the connection."""


class SocketConnection:
    """An :class:`EngineConnection` over a socket."""

    def __init__(self, channel: AsyncFrameChannel) -> None:
        self._channel = channel

    @classmethod
    async def open(cls, sock: socket.socket, config: EngineConfig) -> Self:
        """Takes over ``sock`` and sends the engine its configuration."""
        channel = await AsyncFrameChannel.open(sock)
        with contextlib.suppress(ConnectionError):  # whoever reads next is told
            await channel.send(encode(config))
        return cls(channel)

    async def send(self, frame: ClientFrame) -> None:
        """Raises :class:`ConnectionError` when the engine is gone, ``FrameTooLargeError`` before anything is sent."""
        await self._channel.send(encode(frame))

    async def receive(self) -> EngineFrame:
        """The next frame. Raises :class:`ConnectionError` when the engine is gone or does not speak the protocol."""
        payload = await self._channel.receive()
        try:
            frame: EngineFrame = decode_engine_frame(payload)
        except msgspec.DecodeError as error:
            raise ConnectionError(f"the engine sent an invalid frame: {error}") from error
        return frame

    async def close(self) -> None:
        """Closes the socket."""
        await self._channel.close()
