"""The files of the pages, as they are in the package."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_DIRECTORY = Path(__file__).parent / "static"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file, ready to be sent."""

    body: bytes
    content_type: str
    etag: str
    """Changes with the bytes; quoted, as headers have it."""


def names() -> frozenset[str]:
    """Names of all files, with a slash between directories. What is of no known type is no asset."""
    return frozenset(path.relative_to(_DIRECTORY).as_posix() for path in _DIRECTORY.rglob("*") if path.suffix in _TYPES)


@cache
def load(name: str) -> Asset:
    """One of the files that :func:`names` lists, read at its first use."""
    path = _DIRECTORY / name
    body = path.read_bytes()
    return Asset(body, _TYPES[path.suffix], f'"{hashlib.sha256(body).hexdigest()[:32]}"')
