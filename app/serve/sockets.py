"""The socket that a server listens on."""

from __future__ import annotations

import ipaddress
import socket

from app.serve.errors import StartError

_BACKLOG = 1024
"""Connections that may wait to be accepted."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address. Made before the model loads, so that a taken port shows at once.

    Raises:
        StartError: the address or the port cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's delays off for sockets that name their protocol; accepted ones inherit it.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except (OSError, TypeError) as e:  # TypeError: a name that cannot be a host's
        sock.close()
        reason = e.strerror if isinstance(e, OSError) and e.strerror else e
        raise StartError(f"cannot listen on {host}:{port}: {reason}") from None
    sock.set_inheritable(False)
    return sock


def is_loopback(sock: socket.socket) -> bool:
    """Whether only this machine reaches a bound socket; asked of the socket, because a host may be a name."""
    return ipaddress.ip_address(sock.getsockname()[0]).is_loopback


def url_of(sock: socket.socket) -> str:
    """URL of a server that listens on a bound socket."""
    host, port = sock.getsockname()[:2]
    return _url(host, port)


def local_url_of(sock: socket.socket) -> str:
    """URL at which a browser on this machine finds that server: one that listens on all addresses is at loopback's."""
    host, port = sock.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    return _url(host, port)


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
