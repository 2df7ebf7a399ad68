"""An engine process with a fake runner. ``python fake_engine.py MODE SOCKET_FD STAMP_FD``"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from app.contract.config import EngineConfig
from app.contract.frames import LoadProgress
from app.engine.process import run_engine
from app.ipc import ProgressStamp
from app.parent import end_with_parent
from tests.byte_tokenizer import VOCAB_SIZE
from tests.fakes import FakeRunner

SCRIPT = b"once upon a time "


def make_runner(mode: str) -> Callable[[EngineConfig, Callable[[LoadProgress], None]], FakeRunner]:
    """What MODE says about loading: ``ok``, ``refuse``, ``vanish``, ``hang``, or ``stubborn`` (ignores SIGTERM)."""

    def make(config: EngineConfig, progress: Callable[[LoadProgress], None]) -> FakeRunner:
        progress(LoadProgress(phase="weights", done=1, total=2))
        if mode == "refuse":
            raise ValueError("model.safetensors: tensor lm_head.weight is missing")
        if mode == "vanish":
            os._exit(3)
        if mode == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if mode in ("hang", "stubborn"):
            time.sleep(60)
        return FakeRunner(
            vocab_size=VOCAB_SIZE, next_token=lambda context: SCRIPT[len(context) % len(SCRIPT)], delay=0.002
        )

    return make


if __name__ == "__main__":
    end_with_parent()
    with socket.socket(fileno=int(sys.argv[2])) as channel:
        sys.exit(run_engine(channel, make_runner(sys.argv[1]), ProgressStamp(int(sys.argv[3]))))
