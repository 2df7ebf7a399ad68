"""Threads beside the engine's own."""

from __future__ import annotations

import threading
from collections.abc import Callable


def start_thread(name: str, target: Callable[..., None], *args: object) -> None:
    """Starts a thread that does not keep its process alive."""
    threading.Thread(target=target, args=args, name=name, daemon=True).start()
