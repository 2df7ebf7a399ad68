"""What probes are told."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType


class ModelHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Where a model stands."""

    id: str
    state: str
    """``absent``, ``pulling``, ``loading``, ``ready``, ``idle``, ``unloading`` or ``failed``."""
    reason: str | UnsetType = UNSET
    """Why it is not ready, and how far it is."""
    done: int | UnsetType = UNSET
    """Bytes of a pull, or of a load's phase, so far."""
    total: int | UnsetType = UNSET
    """All of them; 0 where that is not known."""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of a probe: 200 when it passes, else 503."""

    status: str
    """``ok`` or ``unavailable``."""
    state: str
    """The engine's: ``loading``, ``ready``, ``draining`` or ``dead``."""
    reason: str | None = None
    """Why the probe fails."""
    models: list[ModelHealth] | UnsetType = UNSET
    """Each model, where they come and go."""
