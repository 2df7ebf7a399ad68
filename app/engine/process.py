"""The engine as a process of its own, at the far end of an inherited socketpair."""

from __future__ import annotations

import contextlib
import gc
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable

import msgspec

from app.contract.config import EngineConfig
from app.contract.frames import (
    ClientFrame,
    EncodeOutput,
    EngineError,
    EngineFatal,
    EngineFrame,
    EngineOutput,
    LoadProgress,
    OutputFrame,
)
from app.contract.request import EncodeRequest, FinishReason
from app.engine.loop import BadFrame, MakeRunner, serve
from app.engine.runner import Runner
from app.ipc import (
    ChannelClosedError,
    FrameChannel,
    FrameError,
    FrameTooLargeError,
    ProgressStamp,
    decode_client_frame,
    decode_engine_config,
    encode,
)

OUTBOX_BYTES = 8 << 20
"""Bytes of frames that the client has not read, above which the engine stops stepping."""

_WAKES = 4096
"""Calls of :meth:`SocketPort.wake` that one wait answers."""


class _Salvaged(msgspec.Struct):
    """The fields of a malformed request that are needed to answer it."""

    type: str | None = None
    """Tag of the request's kind."""
    request_id: str | None = None
    client_index: int = 0


class SocketPort:
    """:class:`~app.engine.loop.Port` over a socket: one selector, no thread."""

    def __init__(self, channel: FrameChannel) -> None:
        self._channel = channel
        self._early: list[bytes] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(channel, selectors.EVENT_READ)
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)

    @property
    def congested(self) -> bool:
        return self._channel.pending_bytes > OUTBOX_BYTES

    def poll(self, *, wait: bool, for_room: bool = False, timeout: float | None = None) -> list[ClientFrame | BadFrame]:
        return [_decode(payload) for payload in self._poll_payloads(wait=wait, for_room=for_room, timeout=timeout)]

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake; closed: the engine has ended
            self._waker.send(b"\0")

    def first_payload(self) -> bytes:
        """Waits for the first frame, which :meth:`poll` would not decode. Frames that came with it are polled later."""
        while not (payloads := self._poll_payloads(wait=True)):
            pass
        first, *self._early = payloads
        return first

    def _poll_payloads(self, *, wait: bool, for_room: bool = False, timeout: float | None = None) -> list[bytes]:
        self._channel.flush()
        payloads, self._early = self._early, []
        payloads += self._channel.receive()
        if payloads or not wait or (for_room and not self.congested):
            return payloads
        self._wait(timeout)
        self._channel.flush()
        return self._channel.receive()

    def _wait(self, timeout: float | None) -> None:
        events = selectors.EVENT_READ
        if self._channel.pending_bytes:
            events |= selectors.EVENT_WRITE
        self._selector.modify(self._channel, events)
        self._select(timeout)

    def _select(self, timeout: float | None) -> None:
        self._selector.select(timeout)
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(_WAKES)

    def send(self, frame: EngineFrame) -> None:
        try:
            self._channel.send(encode(frame))
        except FrameTooLargeError:
            if not isinstance(frame, OutputFrame):
                raise
            self._send_in_parts(frame)

    def _send_in_parts(self, frame: OutputFrame) -> None:
        """Sends the outputs of a frame that is too large in two frames, or a single output's error in its place."""
        for index, part in enumerate(_halves(frame)):
            self.send(msgspec.structs.replace(part, steps=[] if index else frame.steps))

    def flush(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        self._channel.flush()
        while self._channel.pending_bytes and (left := deadline - time.monotonic()) > 0:
            self._selector.modify(self._channel, selectors.EVENT_WRITE)
            self._select(left)
            self._channel.flush()

    def close(self) -> None:
        """Closes the selector and the sockets."""
        self._selector.close()
        self._waker.close()
        self._woken.close()
        self._channel.close()


def _decode(payload: bytes) -> ClientFrame | BadFrame:
    try:
        return decode_client_frame(payload)
    except msgspec.DecodeError as error:
        message = str(error)
    try:
        salvaged = msgspec.msgpack.decode(payload, type=_Salvaged)
    except msgspec.DecodeError:
        return BadFrame(message)
    encodes = salvaged.type == EncodeRequest.__struct_config__.tag
    return BadFrame(message, salvaged.request_id, salvaged.client_index, encodes)


_TOO_LARGE = EngineError("engine_error", "the answer is too large for one message")


def _halves(frame: OutputFrame) -> list[OutputFrame]:
    """The outputs of a frame in two frames, or one output's error in its place."""
    outputs, encoded = frame.outputs, frame.encoded
    if outputs and encoded:
        return [msgspec.structs.replace(frame, encoded=[]), msgspec.structs.replace(frame, outputs=[])]
    if len(outputs) > 1:
        middle = len(outputs) // 2
        return [msgspec.structs.replace(frame, outputs=part) for part in (outputs[:middle], outputs[middle:])]
    if len(encoded) > 1:
        middle = len(encoded) // 2
        return [msgspec.structs.replace(frame, encoded=part) for part in (encoded[:middle], encoded[middle:])]
    reason = FinishReason.ERROR
    return [
        msgspec.structs.replace(
            frame,
            outputs=[
                EngineOutput(
                    request_id=output.request_id, finish_reason=reason, error=_TOO_LARGE, timings=output.timings
                )
                for output in outputs
            ],
            encoded=[
                EncodeOutput(
                    request_id=output.request_id, finish_reason=reason, error=_TOO_LARGE, timings=output.timings
                )
                for output in encoded
            ],
        )
    ]


def run_engine(sock: socket.socket, make_runner: MakeRunner, stamp: ProgressStamp | None = None) -> int:
    """Runs an engine over ``sock`` and returns the exit code of its process (see :func:`~app.engine.loop.serve`).

    The first frame is the :class:`~app.contract.config.EngineConfig`. SIGINT is left to the parent, which hears of the
    same Ctrl-C and shuts down in order; SIGTERM ends the process as usual.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    port = SocketPort(FrameChannel(sock))
    try:
        config = _read_config(port)
        return 1 if config is None else serve(port, config, frozen(make_runner), stamp)
    except ChannelClosedError:
        return 0
    except FrameError:
        return 1
    finally:
        port.close()


def frozen(make_runner: MakeRunner) -> MakeRunner:
    """``make_runner``, after which the garbage collector leaves all objects alone that exist by then.

    For a process that is there for its engine alone: what is loaded by then is never garbage. A full collection walks
    all objects, with torch and Triton among them for 88 ms where it was measured, and a step would wait for it.
    """

    def make(config: EngineConfig, progress: Callable[[LoadProgress], None]) -> Runner:
        runner = make_runner(config, progress)
        gc.collect()
        gc.freeze()
        return runner

    return make


def _read_config(port: SocketPort) -> EngineConfig | None:
    try:
        return decode_engine_config(port.first_payload())
    except msgspec.DecodeError as error:
        port.send(EngineFatal(f"engine configuration not understood: {error}"))
        return None
