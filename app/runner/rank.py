"""Entry of a rank's process, any but the first: runs its share of every step that it is sent."""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import signal
import socket
import threading
import traceback
from collections import deque
from pathlib import Path

import msgspec
import torch

from app.contract.frames import LoadProgress
from app.contract.step import StepPlan
from app.ipc import FrameAssembler, encode, frame_bytes
from app.kernels.collective import Ranks
from app.runner.group import connect
from app.runner.model_runner import ModelRunner, StepHandle
from app.runner.rank_processes import RankFailed, RankLoaded, RankStart
from app.runner.staging import STEPS_UNDER_WAY
from app.runner.start import load_runner, warm_up

_READ_BYTES = 256 << 10


def main(socket_fd: int) -> int:
    """Serves the first rank at the other end of an inherited socket, and ends with it.

    Returns:
        1, after a failure: no other end comes by way of a return.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first rank's to hear
    sock = socket.socket(fileno=socket_fd)
    frames: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sock, frames), daemon=True).start()
    try:
        start = msgspec.msgpack.decode(frames.get(), type=RankStart)
        runner = _load(start, sock)
        _run(runner, frames)
    except Exception as error:  # noqa: BLE001 - the last boundary of the process
        if not isinstance(error, (ValueError, RuntimeError, OSError, MemoryError)):
            traceback.print_exc()
        with contextlib.suppress(OSError):
            sock.sendall(frame_bytes(encode(RankFailed(_one_line(error)))))
    return 1


def _read(sock: socket.socket, frames: queue.SimpleQueue[bytes]) -> None:
    """Passes frames on. The end of the stream is the end of this process, even if it is deep in a step."""
    assembler = FrameAssembler()
    with contextlib.suppress(OSError):
        while data := sock.recv(_READ_BYTES):
            for payload in assembler.feed(data):
                frames.put(payload)
    os._exit(0)


def _load(start: RankStart, sock: socket.socket) -> ModelRunner:
    ranks = Ranks(start.rank, start.config.tensor_parallel_size)
    runner = load_runner(start.config, _ignore, ranks)
    sock.sendall(frame_bytes(encode(RankLoaded(runner.info.weight_bytes))))
    connect(ranks, torch.device(runner.info.device), Path(start.meeting))
    warm_up(runner, _ignore)
    gc.collect()
    gc.freeze()  # as the engine's process does
    return runner


def _run(runner: ModelRunner, frames: queue.SimpleQueue[bytes]) -> None:
    """Runs steps, on a GPU the next one while the last is under way, as the first rank may."""
    decoder = msgspec.msgpack.Decoder(StepPlan)
    under_way: deque[StepHandle] = deque()
    while True:
        under_way.append(runner.submit(decoder.decode(frames.get())))
        if len(under_way) == STEPS_UNDER_WAY:
            runner.collect(under_way.popleft())  # the same tokens as the first rank's


def _ignore(progress: LoadProgress) -> None:
    """Reports nothing: only the first rank's progress is reported."""


def _one_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
