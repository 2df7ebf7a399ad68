"""Who makes the present request: the API key that it came with."""

from __future__ import annotations

import hmac
from contextvars import ContextVar

from app.keys import ApiKey

_caller: ContextVar[ApiKey | None] = ContextVar("api_key", default=None)


def caller() -> ApiKey | None:
    """The key of the request that the present task serves; None where no key is needed."""
    return _caller.get()


def note_caller(key: ApiKey | None) -> None:
    """Notes the key of the request that the present task serves from here on."""
    _caller.set(key)


def owner() -> str:
    """Name of the present request's key; empty where no key is needed."""
    key = caller()
    return "" if key is None else key.name


def tenant_salt(asked: str) -> str:
    """Salt of the prefix cache for the present request: no two keys share one, whatever their clients ask for."""
    key = caller()
    return asked if key is None else hmac.digest(key.digest, asked.encode(), "sha256").hex()
