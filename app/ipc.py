"""Frames between the API process and an engine process, over an inherited socketpair.

A frame is a 4-byte big-endian length and that many bytes of msgpack. Both ends are non-blocking and bound what they
queue: :class:`FrameChannel` is the engine's end (one thread, a selector), :class:`AsyncFrameChannel` the asyncio end.
:class:`ProgressStamp` is the shared word by which one process sees the other's progress without asking it.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import socket
import struct
import tempfile
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Self

import msgspec

from app.contract.config import EngineConfig
from app.contract.frames import ClientFrame, EngineFrame

MAX_FRAME_BYTES = 64 << 20
_HEADER = struct.Struct(">I")
_READ_BYTES = 256 << 10
# What one call to FrameChannel.receive may take in: a flood of frames must not keep the engine from stepping.
_READ_LIMIT = 4 << 20

encode = msgspec.msgpack.Encoder().encode
# Each raises msgspec.DecodeError.
decode_client_frame: Callable[[bytes], ClientFrame] = msgspec.msgpack.Decoder(ClientFrame).decode
decode_engine_frame: Callable[[bytes], EngineFrame] = msgspec.msgpack.Decoder(EngineFrame).decode
decode_engine_config: Callable[[bytes], EngineConfig] = msgspec.msgpack.Decoder(EngineConfig).decode


class ChannelClosedError(ConnectionError):
    """The peer is gone; the last frame it sent was whole."""


class FrameError(ConnectionError):
    """The bytes that arrive are not a sequence of frames: an impossible length, or an end in mid-frame."""


class FrameTooLargeError(ValueError):
    """A frame to be sent exceeds the size cap; the connection itself is sound."""


def frame_bytes(payload: bytes, max_frame_bytes: int = MAX_FRAME_BYTES) -> bytes:
    """``payload`` with its length in front. Raises :class:`FrameTooLargeError`."""
    if len(payload) > max_frame_bytes:
        raise FrameTooLargeError(f"frame of {len(payload)} bytes exceeds the limit of {max_frame_bytes}")
    return _HEADER.pack(len(payload)) + payload


class FrameAssembler:
    """Cuts a byte stream, fed in pieces of any size, into payloads."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()

    @property
    def in_frame(self) -> bool:
        """Whether the stream so far ends inside a frame."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads that ``data`` completes. Raises :class:`FrameError` on a length above the cap."""
        buffer = self._buffer
        buffer += data
        payloads: list[bytes] = []
        start = 0
        while len(buffer) - start >= _HEADER.size:
            (length,) = _HEADER.unpack_from(buffer, start)
            if length > self._max_frame_bytes:
                raise FrameError(f"frame of {length} bytes exceeds the limit of {self._max_frame_bytes}")
            end = start + _HEADER.size + length
            if len(buffer) < end:
                break
            payloads.append(bytes(memoryview(buffer)[start + _HEADER.size : end]))
            start = end
        del buffer[:start]
        return payloads

    def end(self) -> ConnectionError:
        """The error to raise at the end of the stream."""
        if self.in_frame:
            return FrameError("connection closed in the middle of a frame")
        return ChannelClosedError("connection closed by the other process")


class FrameChannel:
    """The engine's end of the socketpair: never blocks, keeps what the socket does not take yet.

    Raises :class:`ChannelClosedError` from any call once the peer is gone and :class:`FrameError` on a broken stream.
    """

    def __init__(self, sock: socket.socket, *, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._max_frame_bytes = max_frame_bytes
        self._assembler = FrameAssembler(max_frame_bytes)
        self._outbox: deque[memoryview] = deque()
        self._pending_bytes = 0

    def fileno(self) -> int:
        """The socket's file descriptor, by which selectors wait for it."""
        return self._socket.fileno()

    @property
    def pending_bytes(self) -> int:
        """Bytes queued that the socket has not taken."""
        return self._pending_bytes

    def receive(self) -> list[bytes]:
        """Payloads of the frames that are complete now; empty when there are none."""
        payloads: list[bytes] = []
        for _ in range(_READ_LIMIT // _READ_BYTES):
            try:
                data = self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except ConnectionError as error:
                raise ChannelClosedError("connection closed by the other process") from error
            if not data:
                # Frames that came before the end are still worth answering; the end is seen again by the next call.
                if payloads:
                    break
                raise self._assembler.end()
            payloads += self._assembler.feed(data)
        return payloads

    def send(self, payload: bytes) -> None:
        """Queues one frame and writes what the socket takes. Raises :class:`FrameTooLargeError` before queueing."""
        frame = frame_bytes(payload, self._max_frame_bytes)
        self._outbox.append(memoryview(frame))
        self._pending_bytes += len(frame)
        self.flush()

    def flush(self) -> None:
        """Writes what the socket takes now."""
        try:
            while self._outbox:
                head = self._outbox[0]
                sent = self._socket.send(head)
                self._pending_bytes -= sent
                if sent < len(head):
                    self._outbox[0] = head[sent:]
                else:
                    self._outbox.popleft()
        except BlockingIOError:
            return
        except ConnectionError as error:
            raise ChannelClosedError("connection closed by the other process") from error

    def close(self) -> None:
        """Closes the socket; what is still queued is lost."""
        self._socket.close()


class AsyncFrameChannel:
    """The asyncio end: one reader, any number of writers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, max_frame_bytes: int) -> None:
        self._reader = reader
        self._writer = writer
        self._max_frame_bytes = max_frame_bytes
        self._assembler = FrameAssembler(max_frame_bytes)
        self._received: deque[bytes] = deque()

    @classmethod
    async def open(cls, sock: socket.socket, *, max_frame_bytes: int = MAX_FRAME_BYTES) -> Self:
        """Takes over ``sock``, a connected Unix stream socket."""
        sock.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        return cls(reader, writer, max_frame_bytes)

    async def send(self, payload: bytes) -> None:
        """Sends one frame; waits while the write buffer is above its high-water mark.

        Raises :class:`FrameTooLargeError`, or :class:`ConnectionError` when the peer is gone. A cancelled send has
        still queued the frame whole.
        """
        self._writer.write(frame_bytes(payload, self._max_frame_bytes))
        await self._writer.drain()

    async def receive(self) -> bytes:
        """The next payload. Raises :class:`ChannelClosedError` or :class:`FrameError`; cancelling loses nothing."""
        while not self._received:
            try:
                data = await self._reader.read(_READ_BYTES)
            except ConnectionError as error:
                raise ChannelClosedError("connection closed by the other process") from error
            if not data:
                raise self._assembler.end()
            self._received.extend(self._assembler.feed(data))
        return self._received.popleft()

    async def close(self) -> None:
        """Closes the socket after what is queued has been written, or the peer is gone."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


class Progress(NamedTuple):
    """A reading of :class:`ProgressStamp`."""

    steps: int
    """Steps computed so far."""
    time: float
    """:func:`time.monotonic` of the last write; 0 before the first."""
    has_work: bool
    """Whether the engine had something to compute then."""


class ProgressStamp:
    """Three words of memory on a file descriptor that two processes share: steps, time, has_work.

    The engine writes it around every step, so a watchdog tells a stuck engine from a busy or an idle one without
    sending it anything. A temporary file, since not every platform has memfd.
    """

    _WORDS = 3

    def __init__(self, fd: int) -> None:
        """Maps ``fd``, which this object owns from here on."""
        self.fd = fd
        self._map = mmap.mmap(fd, self._WORDS * 8)
        self._words = memoryview(self._map).cast("Q")

    @classmethod
    def create(cls) -> Self:
        """A fresh stamp; hand ``fd`` to the child process (``pass_fds``)."""
        with tempfile.TemporaryFile() as file:
            file.truncate(cls._WORDS * 8)
            return cls(os.dup(file.fileno()))

    def write(self, steps: int, *, has_work: bool) -> None:
        """Stamps that the engine is alive now.

        Args:
            steps: steps computed so far.
            has_work: whether the engine has something to compute.
        """
        self._words[0] = steps
        self._words[2] = has_work
        self._words[1] = time.monotonic_ns()

    def read(self) -> Progress:
        """The last write. Words are read one by one: two of them may be of neighbouring writes."""
        return Progress(self._words[0], self._words[1] / 1e9, bool(self._words[2]))

    def close(self) -> None:
        """Unmaps and closes; the other process keeps its own mapping."""
        self._words.release()
        self._map.close()
        os.close(self.fd)
