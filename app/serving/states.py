"""Where a served model stands."""

from __future__ import annotations

import enum

from app.serving.engine_client import EngineState


class ModelState(enum.StrEnum):
    """Where a served model stands."""

    ABSENT = "absent"
    """Its files are not on this machine."""
    PULLING = "pulling"
    """Its files are being fetched."""
    LOADING = "loading"
    """Its engine starts, for the first time or again."""
    READY = "ready"
    """Its engine takes requests."""
    IDLE = "idle"
    """Its files are here and it has no engine; a request starts one."""
    UNLOADING = "unloading"
    """Its engine takes no more requests and ends with the last one."""
    FAILED = "failed"
    """It has no engine, and gets none any more."""


OF_ENGINE = {
    EngineState.LOADING: ModelState.LOADING,
    EngineState.READY: ModelState.READY,
    EngineState.DRAINING: ModelState.UNLOADING,
    EngineState.DEAD: ModelState.FAILED,
    EngineState.IDLE: ModelState.IDLE,
}
"""Where a model stands whose engine is in a state."""
