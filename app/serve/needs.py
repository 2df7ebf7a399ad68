"""Asks the tensor side how much memory an engine will take, in a process of its own: this one imports no torch."""

from __future__ import annotations

import subprocess
import sys
import threading

import msgspec
import structlog

from app.contract.config import EngineConfig
from app.contract.info import MemoryNeeds

_ENTRY = f"""import sys
sys.path[:] = {sys.path!r}
from app.parent import end_with_parent
end_with_parent()
from app.runner.needs import main
main()"""
_SECONDS = 120.0
"""Seconds that an answer may take; an idle machine takes two or three."""
_one_at_a_time = threading.Lock()
_log = structlog.get_logger("tuili.models")


def measured_needs(config: EngineConfig) -> int | None:
    """Bytes of an engine's weights and KV cache. None where that cannot be told, as of a model that will not start.

    It takes seconds, and blocks.
    """
    command = (sys.executable, "-P", "-c", _ENTRY)
    try:
        with _one_at_a_time:
            done = subprocess.run(
                command, input=msgspec.json.encode(config), capture_output=True, timeout=_SECONDS, check=True
            )
        needs = msgspec.json.decode(done.stdout, type=MemoryNeeds)
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
        said = getattr(error, "stderr", None) or str(error).encode()
        last = said.decode(errors="replace").strip().splitlines()[-1:]
        _log.info("memory of a model is guessed from its files", model_dir=config.model_dir, reason="".join(last))
        return None
    return needs.weights + needs.kv_cache
