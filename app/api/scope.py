"""What the middleware noted about a request."""

from __future__ import annotations

import re

from starlette.routing import Match, Route
from starlette.types import Scope

_MAX_SHOWN = 200
_UNPRINTABLE = re.compile(r"[^ -~]")


class NamedRoute(Route):
    """A route that FastAPI documents nowhere, known by its template all the same, as those that it documents."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As any route; :func:`route_path` finds it then."""
        match, found = super().matches(scope)
        return match, found if match is Match.NONE else {**found, "route": self}


def arrival(scope: Scope) -> float:
    """Instant of ``time.monotonic`` at which a request's head had come."""
    value: float = scope["state"]["arrival"]
    return value


def request_id(scope: Scope) -> str:
    """The id that :class:`RequestIdMiddleware` gave a request."""
    value: str = scope["state"]["request_id"]
    return value


def route_path(scope: Scope) -> str | None:
    """Template of the route that a request took; None if it took none, or has not yet."""
    return getattr(scope.get("route"), "path", None)


def shown(text: str) -> str:
    """What a client wrote, as a log line may carry it: bounded, printable."""
    return _UNPRINTABLE.sub("?", text[:_MAX_SHOWN])


def leave_to_ledger(scope: Scope) -> None:
    """Notes that the ledger writes a request down from here on, however it ends."""
    scope["state"]["in_ledger"] = True


def is_in_ledger(scope: Scope) -> bool:
    """Whether the ledger writes a request down."""
    return bool(scope.get("state", {}).get("in_ledger"))


def deadline(scope: Scope, asked: float | None, allowed: float | None) -> float | None:
    """Instant of ``time.monotonic`` at which a request is given up.

    Args:
        asked: seconds from its arrival that the client waits at most.
        allowed: seconds that the server allows at most.
    """
    limits = [limit for limit in (asked, allowed) if limit is not None]
    return arrival(scope) + min(limits) if limits else None
