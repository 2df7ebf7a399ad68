"""Command and configuration of the engine process. Without a web framework, as memory plans need it too."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from app.contract.config import EngineConfig
from app.settings import Settings
from app.store import Store

# The engine imports from where this process does. -m would look in the working directory first, and a user who starts
# the server in a project of their own may well have a package named app there.
_ENGINE_ENTRY = f"""import sys
sys.path[:] = {sys.path!r}
from app.parent import end_with_parent
end_with_parent()
from app.telemetry.late_logs import log_late
log_late(sys.argv[1], sys.argv[2])
from app.worker import main
sys.exit(main(*map(int, sys.argv[3:])))"""

OF_THE_MODEL = frozenset({"model_dir", "weights", "eos_token_ids", "packed_cache", "adapters"})
"""Fields of an :class:`EngineConfig` that depend on the model and on where models lie."""
NO_SETTINGS = frozenset({"block_size", "num_blocks", "max_queued_encode_tokens"})
"""Fields of an :class:`EngineConfig` that a server leaves at their defaults."""


def engine_command(settings: Settings) -> tuple[str, ...]:
    """Command of an engine process that logs as this one does; to be followed by its socket's and stamp's numbers."""
    return (sys.executable, "-P", "-c", _ENGINE_ENTRY, settings.log_level, settings.log_format)


def engine_config(
    settings: Settings, directory: Path, weights: Sequence[Path] = (), eos_token_ids: Sequence[int] = ()
) -> EngineConfig:
    """The configuration of an engine process that runs the model in ``directory``.

    Every setting that is named as a field of :class:`EngineConfig` is that field.
    """
    # As JSON has them: sizes are plain integers there.
    shared = settings.model_dump(mode="json", include=set(EngineConfig.__struct_fields__))
    shared["prefix_cache_dir"] = _prefix_cache_dir(settings)
    of_the_model = {
        "model_dir": str(directory),
        "weights": [str(path) for path in weights],
        "eos_token_ids": list(eos_token_ids),
        "packed_cache": str(Store(settings.home).packed),
        "adapters": [
            {"name": name, "path": str(Path(path).expanduser().absolute())}
            for name, _, path in (entry.partition("=") for entry in settings.adapter)
        ],
        "max_adapters": len(settings.adapter) if settings.max_adapters is None else settings.max_adapters,
    }
    return msgspec.convert(shared | of_the_model, EngineConfig)


def _prefix_cache_dir(settings: Settings) -> str | None:
    """The directory that keeps blocks: beside the models, if the settings name its size alone."""
    if settings.prefix_cache_dir is not None:
        return str(settings.prefix_cache_dir.expanduser().absolute())
    return None if settings.prefix_cache_disk is None else str(Store(settings.home).prefix_cache)
