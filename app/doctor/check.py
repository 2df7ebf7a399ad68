"""What a check is made of: a server to ask, and ways to say what is wrong with its answers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import httpx
import msgspec

from app.client.sse import EventDecoder
from app.client.target import auth_headers, describe_body, describe_exception

T = TypeVar("T")

_KINDS = {str: "a string", int: "an integer", float: "a number", list: "a list", dict: "an object"}


class ContractError(Exception):
    """The server breaks a contract; the message is one line that says how."""


class NotOfferedError(Exception):
    """The server does not have what the check is about; the message is one line."""


Status = Literal["ok", "failed", "not offered"]


@dataclass(frozen=True)
class Outcome:
    """What a check found."""

    protocol: str
    name: str
    status: Status
    detail: str = ""
    """Why it failed, or what is not there; one line."""


@dataclass
class Target:
    """The server under examination."""

    http: httpx.Client
    root: str
    """URL of the server, without ``/v1``."""
    api_key: str | None
    model: str | None
    """Name of the model; None where the server lists none, and requests leave it out."""
    _offered: dict[str, bool] = field(default_factory=dict)

    def get(self, path: str, *, with_key: bool = True, headers: dict[str, str] | None = None) -> httpx.Response:
        """The successful answer to a GET request.

        Raises:
            NotOfferedError: there is no such route.
            ContractError: no answer, or an error.
        """
        key = auth_headers(self.api_key) if with_key else {}
        response = self._send("GET", path, headers={**key, **(headers or {})})
        if _is_missing(response):
            raise NotOfferedError(f"{path}: HTTP {response.status_code}")
        return _succeeded(response)

    def post(self, path: str, body: Any) -> httpx.Response:
        """The answer to a good request. Raises as :meth:`get` does."""
        return _succeeded(self.refused(path, body))

    def refused(self, path: str, body: Any) -> httpx.Response:
        """The answer to any request; ``body`` is sent as it is if it is bytes.

        Raises:
            NotOfferedError: there is no such route.
            ContractError: no answer.
        """
        if path not in self._offered:
            # A body without anything in it is an error of its own kind wherever the route exists.
            self._offered[path] = not _is_missing(self._post(path, b"{}"))
        if not self._offered[path]:
            raise NotOfferedError(f"there is no {path}")
        return self._post(path, body if isinstance(body, bytes) else msgspec.json.encode(body))

    def events(self, path: str, body: Any) -> list[bytes]:
        """The data of all events of a streamed answer. Raises as :meth:`get` does."""
        response = self.post(path, body)
        media = response.headers.get("content-type", "")
        expect(media.startswith("text/event-stream"), f"the stream's content type is {media!r}, not text/event-stream")
        events = list(EventDecoder().feed(response.content))
        expect(bool(events), "the stream has no events")
        return events

    def named(self, body: dict[str, Any]) -> dict[str, Any]:
        """``body`` with the model's name where one is known."""
        return body if self.model is None else {"model": self.model, **body}

    def _post(self, path: str, content: bytes) -> httpx.Response:
        headers = {**auth_headers(self.api_key), "content-type": "application/json"}
        return self._send("POST", path, content=content, headers=headers)

    def _send(self, method: str, path: str, **given: Any) -> httpx.Response:
        try:
            return self.http.request(method, self.root + path, **given)
        except httpx.HTTPError as e:
            raise ContractError(f"{path}: {describe_exception(e)}") from None


@dataclass(frozen=True)
class Check:
    """One contract. ``run`` returns where the server keeps it, and raises where not."""

    protocol: str
    name: str
    run: Callable[[Target], None]

    def outcome(self, target: Target) -> Outcome:
        """Asks the server."""
        report = functools.partial(Outcome, self.protocol, self.name)
        try:
            self.run(target)
        except NotOfferedError as e:
            return report("not offered", str(e))
        except ContractError as e:
            return report("failed", str(e))
        return report("ok")


def _is_missing(response: httpx.Response) -> bool:
    """Whether the route is missing; a model that is not there is another matter."""
    if response.status_code not in (404, 405):
        return False
    try:
        error = response.json()["error"]
        return bool(error.get("param") != "model" and error.get("code") != "model_not_found")
    except (ValueError, LookupError, TypeError, AttributeError):
        return True


def _succeeded(response: httpx.Response) -> httpx.Response:
    if not response.is_success:
        raise ContractError(f"HTTP {response.status_code}: {describe_body(response.content)}")
    return response


def expect(condition: bool, message: str) -> None:
    """Raises :class:`ContractError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ContractError(message)


def decoded(data: bytes) -> Any:
    """Decoded JSON. Raises :class:`ContractError` for anything else."""
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError as e:
        raise ContractError(f"not JSON: {e}") from None


def at(content: Any, *path: str | int, kind: type[T]) -> T:
    """The value at ``path`` in decoded JSON; an integer will do where a float is asked for.

    Raises:
        ContractError: nothing is there, or nothing of that kind.
    """
    found = content
    for part in path:
        try:
            found = found[part]
        except (LookupError, TypeError):
            raise ContractError(f"{_shown(path)} is missing") from None
    accepted = (int, float) if kind is float else kind
    if not isinstance(found, accepted) or isinstance(found, bool):
        raise ContractError(f"{_shown(path)} is {_brief(found)}, not {_KINDS[kind]}")
    return found  # type: ignore[return-value]  # an integer where a float was asked for


def has(content: Any, *names: str) -> None:
    """Checks that fields are there, null or not. Raises :class:`ContractError` that names the first that is not."""
    for name in names:
        expect(isinstance(content, dict) and name in content, f"{name} is missing")


def equal(what: str, found: Any, expected: Any) -> None:
    """Raises :class:`ContractError` unless the two are the same."""
    expect(found == expected, f"{what} is {_brief(found)}, not {_brief(expected)}")


def _shown(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _brief(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
