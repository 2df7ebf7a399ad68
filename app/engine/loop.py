"""The engine's life: load, say ready, then drain inbox → step → send, until told to stop.

Written against a :class:`Port`, so the same loop runs over a socket (``process.py``) and in a thread (``inproc.py``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from app.contract.config import EngineConfig
from app.contract.frames import (
    AbortRequests,
    ClientFrame,
    EncodeOutput,
    EngineError,
    EngineFatal,
    EngineFrame,
    EngineOutput,
    EngineReady,
    EngineStats,
    LoadAdapter,
    LoadProgress,
    OutputFrame,
    Survey,
    UnloadAdapter,
    Vocabulary,
)
from app.contract.request import EncodeRequest, GenerateRequest
from app.engine.core import EngineCore, EngineFailedError
from app.engine.runner import Runner
from app.ipc import ChannelClosedError, FrameError, ProgressStamp

MakeRunner = Callable[[EngineConfig, Callable[[LoadProgress], None]], Runner]
"""Loads a model: given the configuration, and what is to be told of the load's progress."""

# What loading raises for reasons that a person can act on; anything else is a bug and shows its traceback.
_LOAD_ERRORS = (ValueError, RuntimeError, OSError, MemoryError)
_FLUSH_SECONDS = 5.0
"""Seconds that the last frames get to reach the client."""
_CLOSE_SECONDS = 1.5
"""Seconds that the prefix cache gets to write what is not on the disk: less than a supervisor waits for an exit."""
_REPORT_SECONDS = 1.0
"""Seconds since the last report of the engine's state after which clients get one before a step, not only after it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BadFrame:
    """A frame that does not decode; answered if it at least names its request."""

    message: str
    """Why it does not decode."""
    request_id: str | None = None
    client_index: int = 0
    encodes: bool = False
    """Whether it was meant to be an :class:`~app.contract.request.EncodeRequest`."""


class Port(Protocol):
    """The engine's side of a connection. Every method raises :class:`ChannelClosedError` once the client is gone."""

    @property
    def congested(self) -> bool:
        """Whether too much of what was sent is unread: the engine should not produce more."""

    def poll(self, *, wait: bool, for_room: bool = False, timeout: float | None = None) -> list[ClientFrame | BadFrame]:
        """Frames that have arrived since the last call.

        Args:
            wait: waits for a frame if none has arrived, or for :meth:`wake`.
            for_room: stops waiting, without a frame, once :attr:`congested` is False.
            timeout: seconds after which it stops waiting; None: it does not.
        """

    def wake(self) -> None:
        """Ends the wait of a :meth:`poll`, the present one or the next. Any thread may call it."""

    def send(self, frame: EngineFrame) -> None:
        """Queues a frame."""

    def flush(self, timeout: float) -> None:
        """Waits until all queued frames are with the client, ``timeout`` seconds at most."""


class EngineLoop:
    """The engine thread's loop: never computes for a client that does not read, never spins while idle."""

    def __init__(self, core: EngineCore, port: Port, stamp: ProgressStamp | None) -> None:
        self._core = core
        self._port = port
        self._stamp = stamp
        self._clients = {0}
        self._reported = core.stats()
        self._report_time = time.monotonic()

    def run(self) -> None:
        """Returns on a :class:`~app.contract.frames.Shutdown` frame; raises what ends the engine otherwise."""
        core, port = self._core, self._port
        while True:
            can_step = core.has_work and not port.congested
            if not can_step:
                if not core.has_work:
                    self._report()
                core.pause()
            self._mark(has_work=can_step)
            for frame in port.poll(wait=not can_step, for_room=core.has_work, timeout=core.longest_pause):
                if not self._handle(frame):
                    return
            if core.longest_pause is not None:
                core.tend()
            if core.adapters.has_outcomes:
                for outcome in core.adapters.take_outcomes():
                    port.send(outcome)
            if core.has_work and not port.congested:
                self._mark(has_work=True)
                try:
                    core.advance(self._report_if_old)
                finally:  # also when this was the engine's last step
                    self._send(core.take_outputs(), core.take_encoded())

    def _mark(self, *, has_work: bool) -> None:
        if self._stamp is not None:
            self._stamp.write(self._core.num_steps, has_work=has_work)

    def _handle(self, frame: ClientFrame | BadFrame) -> bool:
        """Acts on one frame; False when it says to stop."""
        match frame:
            case GenerateRequest() | EncodeRequest():
                self._clients.add(frame.client_index)
                try:
                    self._add(frame)
                except Exception:  # noqa: BLE001 - a bug that one request meets is that request's error
                    _log.exception("request %s could not be admitted", frame.request_id)
                    error = EngineError("engine_error", "the engine could not take this request")
                    self._reject(frame.request_id, frame.client_index, error, encodes=isinstance(frame, EncodeRequest))
            case AbortRequests():
                self._core.abort(frame.request_ids)
            case LoadAdapter():
                self._core.adapters.load(frame.name, frame.path)
            case UnloadAdapter():
                self._core.adapters.unload(frame.name)
            case Survey():
                self._port.send(self._core.survey())
            case Vocabulary():
                self._core.set_vocabulary(frame)
            case BadFrame():
                _log.error("frame dropped: %s", frame.message)
                if frame.request_id is not None:
                    error = EngineError("invalid_request", frame.message)
                    self._reject(frame.request_id, frame.client_index, error, encodes=frame.encodes)
            case _:
                return False
        return True

    def _add(self, request: GenerateRequest | EncodeRequest) -> None:
        if isinstance(request, EncodeRequest):
            self._core.add_encode_request(request)
        else:
            self._core.add_request(request)

    def _reject(self, request_id: str, client_index: int, error: EngineError, *, encodes: bool) -> None:
        reject = self._core.reject_encode if encodes else self._core.reject
        reject(request_id, client_index, error)

    def _send(self, outputs: dict[int, list[EngineOutput]], encoded: dict[int, list[EncodeOutput]]) -> None:
        if outputs or encoded:
            self._send_frames(self._core.stats(), outputs, encoded)
        else:
            self._report()

    def _report_if_old(self) -> None:
        if time.monotonic() - self._report_time >= _REPORT_SECONDS:
            self._report()

    def _report(self) -> None:
        """Sends every client the engine's state, if it has changed since it was last sent."""
        stats = self._core.stats()
        if stats != self._reported:
            self._send_frames(stats, {client_index: [] for client_index in sorted(self._clients)}, {})

    def _send_frames(
        self,
        stats: EngineStats,
        outputs: dict[int, list[EngineOutput]],
        encoded: dict[int, list[EncodeOutput]],
    ) -> None:
        self._reported, self._report_time = stats, time.monotonic()
        steps = self._core.take_records()
        for client_index in outputs | encoded if encoded else outputs:
            self._port.send(
                OutputFrame(
                    client_index=client_index,
                    outputs=outputs.get(client_index, []),
                    encoded=encoded.get(client_index, []),
                    stats=stats,
                    steps=steps,
                )
            )


def serve(port: Port, config: EngineConfig, make_runner: MakeRunner, stamp: ProgressStamp | None) -> int:
    """Loads a model and runs the engine to its end.

    Returns:
        An exit code: 0 after a shutdown or when the client has gone, 1 after an
        :class:`~app.contract.frames.EngineFatal` or a broken connection. A traceback on stderr means a bug.
    """
    try:
        return _serve(port, config, make_runner, stamp)
    except ChannelClosedError:
        return 0
    except FrameError as error:
        _log.error("connection lost: %s", error)
        return 1
    except EngineFailedError as error:
        return _die(port, _one_line(error))
    except Exception as error:  # noqa: BLE001 - the last boundary of the process
        traceback.print_exc()
        return _die(port, f"engine bug: {type(error).__name__}: {_one_line(error)}")


def _serve(port: Port, config: EngineConfig, make_runner: MakeRunner, stamp: ProgressStamp | None) -> int:
    try:
        runner = make_runner(config, port.send)
        core = EngineCore(runner, config, on_news=port.wake)
    except ChannelClosedError:
        raise
    except _LOAD_ERRORS as error:
        return _die(port, _one_line(error))
    port.send(
        EngineReady(info=runner.info, max_kv_tokens=core.max_kv_tokens, pid=os.getpid(), adapters=core.adapters.names)
    )
    try:
        EngineLoop(core, port, stamp).run()
        port.flush(_FLUSH_SECONDS)
    finally:
        core.close(_CLOSE_SECONDS)
    return 0


def _die(port: Port, message: str) -> int:
    with contextlib.suppress(ConnectionError):  # nobody left to tell
        port.send(EngineFatal(message))
        port.flush(_FLUSH_SECONDS)
    return 1


def _one_line(error: Exception) -> str:
    """The first line of an exception's message, or its type's name if it has none."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
