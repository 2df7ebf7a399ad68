"""Entry of the engine process: wires the runner into the engine. ``python -m app.worker SOCKET_FD STAMP_FD``.

A composition root of its own, so that an engine needs none of the web stack that ``serve/`` wires.
"""

from __future__ import annotations

import os
import socket
import sys
from functools import partial

from app.engine.process import run_engine
from app.ipc import ProgressStamp
from app.runner.parallel import start_runner


def main(socket_fd: int, stamp_fd: int) -> int:
    """Serves the API process at the other end of an inherited socket; returns the exit code."""
    with socket.socket(fileno=socket_fd) as channel:
        return run_engine(channel, partial(start_runner, on_lost=_end), ProgressStamp(stamp_fd))


def _end(reason: str) -> None:
    """Ends the process, whatever it waits for; the supervisor starts a new one."""
    print(f"engine: {reason}", file=sys.stderr, flush=True)  # noqa: T201 - the last words of the process
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
