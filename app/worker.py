"""Entry of the engine process: wires the runner into the engine. ``python -m app.worker SOCKET_FD STAMP_FD``.

A composition root of its own, so that an engine needs none of the web stack that ``main.py`` wires.
"""

from __future__ import annotations

import socket
import sys

from app.engine.process import run_engine
from app.ipc import ProgressStamp
from app.runner.model_runner import make_runner


def main(socket_fd: int, stamp_fd: int) -> int:
    """Serves the API process at the other end of an inherited socket; returns the exit code."""
    with socket.socket(fileno=socket_fd) as channel:
        return run_engine(channel, make_runner, ProgressStamp(stamp_fd))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
