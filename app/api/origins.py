"""Who may call a server that needs no key: programs, and pages of this machine; no page of a stranger.

A browser lets any page send requests to any server it reaches, that of its own machine included: the page cannot read
the answer, but the work is done. A page whose name was made to lead to this machine can even read it. Keys keep both
out, as a page does not know them. ``docs/decisions/034`` says why it is these headers that are looked at.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.auth import OPEN_PATHS
from app.api.body import is_json, unsupported_media_type
from app.api.errors import error_response
from app.api.scope import shown
from app.errors import RequestError

ANY = "*"
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@\s]+)(:\d*)?")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(.+)")
_UNREGISTRABLE = (".localhost", ".internal")
"""Domains in which nobody can have a name of the public DNS; containers call their host by one in the second."""


class OriginMiddleware:
    """Refuses what pages of others send: a foreign ``Host``, a foreign ``Origin``, or a body that is not called JSON.

    Args:
        hosts: names by which clients may call the server besides addresses, names without a dot and those that nobody
            can register; None takes any name.
        origins: origins whose pages may call it besides those of this machine and its own; ``*`` takes all.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] | None, origins: Sequence[str]) -> None:
        self._app = app
        self._checks_hosts = hosts is not None
        self._hosts = {host.lower() for host in hosts or ()}
        self._origins = {origin.lower() for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forwards, or answers 403 or 415 itself. Probes may be asked by any name."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            error = self._refusal(Headers(scope=scope), scope["method"])
            if error is not None:
                await error_response(error, scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers, method: str) -> RequestError | None:
        authorities = [value.strip().lower() for value in headers.getlist("host")]
        for authority in authorities if self._checks_hosts else ():
            if not self._is_own_name(_host_of(authority)):
                return _foreign(
                    "host", f"This server is not called {shown(authority)!r}: --allowed-hosts names what it is called."
                )
        for origin in headers.getlist("origin"):
            if not self._may_call(origin.strip().lower(), authorities):
                return _foreign(
                    "origin",
                    f"Pages of {shown(origin)!r} may not call this server, which needs no key: --cors-origins names "
                    "those that may.",
                )
            # A page may send any other type without asking first.
            if method == "POST" and not is_json(given := headers.get("content-type", "")):
                return unsupported_media_type(given)
        return None

    def _is_own_name(self, host: str) -> bool:
        """Whether a page that was loaded from ``host`` cannot be a stranger's that leads here by DNS alone."""
        if host in self._hosts or host.endswith(_UNREGISTRABLE) or _address(host) is not None:
            return True
        return bool(host) and "." not in host

    def _may_call(self, origin: str, authorities: Sequence[str]) -> bool:
        if origin in self._origins or ANY in self._origins:
            return True
        parts = _ORIGIN.fullmatch(origin)
        if parts is None:
            return False  # "null": a page that hides where it is from
        scheme, authority = parts.groups()
        if scheme not in ("http", "https"):
            return True  # no page of the web: an installed program or extension
        host = _host_of(authority)
        return authority in authorities or host in self._hosts or _is_this_machine(host)


def _host_of(authority: str) -> str:
    """Name or address without the port; empty where there is none."""
    parts = _AUTHORITY.fullmatch(authority)
    return "" if parts is None else parts[1].strip("[]").removesuffix(".")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_this_machine(host: str) -> bool:
    address = _address(host)
    if address is not None:
        return address.is_loopback or address.is_unspecified
    return host == "localhost" or host.endswith(".localhost")


def _foreign(what: str, message: str) -> RequestError:
    return RequestError(message, status=403, type="permission_error", code=f"foreign_{what}")
