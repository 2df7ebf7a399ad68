"""What probes are told."""

from __future__ import annotations

import msgspec


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of a probe: 200 when it passes, else 503."""

    status: str
    """``ok`` or ``unavailable``."""
    state: str
    """The engine's: ``loading``, ``ready``, ``draining`` or ``dead``."""
    reason: str | None = None
    """Why the probe fails."""
