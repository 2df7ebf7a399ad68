"""What the middleware noted about a request."""

from __future__ import annotations

from starlette.types import Scope


def arrival(scope: Scope) -> float:
    """Instant of ``time.monotonic`` at which a request's head had come."""
    value: float = scope["state"]["arrival"]
    return value


def request_id(scope: Scope) -> str:
    """The id that :class:`RequestIdMiddleware` gave a request."""
    value: str = scope["state"]["request_id"]
    return value


def deadline(scope: Scope, asked: float | None, allowed: float | None) -> float | None:
    """Instant of ``time.monotonic`` at which a request is given up.

    Args:
        asked: seconds from its arrival that the client waits at most.
        allowed: seconds that the server allows at most.
    """
    limits = [limit for limit in (asked, allowed) if limit is not None]
    return arrival(scope) + min(limits) if limits else None
