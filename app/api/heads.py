"""HEAD wherever there is a GET."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class HeadMiddleware:
    """Has the application answer a HEAD as the GET of the same path; the HTTP server sends the head of that alone.

    ``wget --spider``, balancers, and clients that look whether a server is there ask so.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forwards; the scope outside keeps its method, by which the server knows that no body may follow."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        inside = {**scope, "method": "GET"}
        try:
            await self._app(inside, receive, send)
        finally:
            if "route" in inside:
                scope["route"] = inside["route"]  # metrics name it
