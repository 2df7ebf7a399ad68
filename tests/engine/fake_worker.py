"""Entry of an engine process without a model: ``python -m tests.engine.fake_worker SOCKET_FD STAMP_FD [FAILURE]``."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable

from app.contract.config import EngineConfig
from app.contract.frames import LoadProgress
from app.engine.process import run_engine
from app.ipc import ProgressStamp
from tests.fakes import FakeRunner, make_fake_runner

FAILURES: dict[str, Exception] = {
    "value": ValueError("config.json: hidden_size is missing\nand a second line"),
    "runtime": RuntimeError("weights.safetensors: tensor a.b is missing"),
    "file": FileNotFoundError(2, "No such file or directory", "model.gguf"),
    "memory": MemoryError(),
    "bug": KeyError("oops"),
}


def make_runner(config: EngineConfig, progress: Callable[[LoadProgress], None]) -> FakeRunner:
    """Fails to load when the configuration's model directory is the name of a failure."""
    if config.model_dir in FAILURES:
        raise FAILURES[config.model_dir]
    return make_fake_runner(config, progress)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        sys.exit(run_engine(channel, make_runner, ProgressStamp(int(sys.argv[2]))))
