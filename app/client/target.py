"""A server that speaks the OpenAI API, as its clients see it."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec


class TargetError(Exception):
    """The server cannot be used; the message is one line."""


def api_root(url: str) -> str:
    """``http://host:8000``, with or without ``/v1``, as the root of the routes."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/") + "/v1"


def auth_headers(api_key: str | None) -> dict[str, str]:
    """Headers that carry an API key; none without a key."""
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def describe_error(error: Any) -> str:
    """The message of an ``error`` object, in one line."""
    message = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(message).split())[:500]


def describe_body(body: bytes) -> str:
    """What the body of a failed response says, in one line."""
    try:
        content = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return describe_error(body.decode(errors="replace"))
    if not isinstance(content, dict):
        return describe_error(content)
    return describe_error(content.get("error") or content.get("detail") or content)


def describe_exception(error: Exception) -> str:
    """An exception in one line; some of httpx have no text of their own."""
    return describe_error(str(error) or type(error).__name__)


def first_model(url: str, api_key: str | None, timeout: float = 10.0) -> str:
    """The first model that the server lists.

    Raises:
        TargetError: it does not answer, or lists none.
    """
    where = f"{api_root(url)}/models"
    try:
        answer = httpx.get(where, headers=auth_headers(api_key), timeout=timeout)
        if answer.is_success:
            return str(answer.json()["data"][0]["id"])
    except (httpx.HTTPError, httpx.InvalidURL) as e:
        raise TargetError(f"cannot reach {where}: {describe_exception(e)}") from None
    except (ValueError, LookupError, TypeError):
        raise TargetError(f"{where} lists no model; name one with --model") from None
    raise TargetError(f"{where}: HTTP {answer.status_code}: {describe_body(answer.content)}")
