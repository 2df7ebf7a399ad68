"""``GET /`` and ``/docs`` for browsers, and the files that these pages consist of.

The pages need no API key: there is nothing in them that the package does not have. They ask people for the key and send
it with what they request. ``docs/decisions/038`` says why they are made as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from app.api.page import assets
from app.api.scope import NamedRoute

FILES = "/page/"
"""Path under which the files are."""
_PAGES = {"/": "index.html", "/docs": "docs.html"}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Nothing but our own files runs, nothing leaves for another server, and no text becomes markup."""
_HEADERS = {
    "cache-control": "no-cache",  # kept, and asked about: a newer server has newer files under the same names
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_OPEN = frozenset({"/docs", *(FILES + name for name in assets.names())})


def routes() -> list[BaseRoute]:
    """The routes. They go before those of the protocols: programs that ask ``GET /`` mean one of them."""
    return [
        _HtmlRoute("/", _page, methods=["GET"], include_in_schema=False),
        NamedRoute("/docs", _page, methods=["GET"], include_in_schema=False),
        NamedRoute(FILES + "{name:path}", _file, methods=["GET"], include_in_schema=False),
    ]


def is_page(scope: Scope) -> bool:
    """Whether a request asks for a page or a file of one, and for nothing else."""
    if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
        return False
    path = scope["path"]
    return path in _OPEN or (path == "/" and _takes_html(scope))


class _HtmlRoute(NamedRoute):
    """A route for browsers alone."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As any route, where HTML is asked for by name."""
        return super().matches(scope) if is_page(scope) else (Match.NONE, {})


def _takes_html(scope: Scope) -> bool:
    return any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])


async def _page(request: Request) -> Response:
    return _send(request, _PAGES[request.scope["path"]], {"vary": "accept"})


async def _file(request: Request) -> Response:
    name = request.path_params["name"]
    if FILES + name not in _OPEN:
        raise HTTPException(404)
    return _send(request, name, {})


def _send(request: Request, name: str, headers: Mapping[str, str]) -> Response:
    asset = assets.load(name)
    headers = {**_HEADERS, **headers, "etag": asset.etag}
    if asset.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(asset.body, headers={**headers, "content-type": asset.content_type})
