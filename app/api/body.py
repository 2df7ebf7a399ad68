"""Request bodies: bytes to a validated schema, every fault a 400 that names the field."""

from __future__ import annotations

import asyncio
import re
from typing import TypeVar

import pydantic_core
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from app.errors import RequestError

B = TypeVar("B", bound=BaseModel)

# Tags of unions in pydantic's locations: the form that a value was taken for, no part of its path.
_TAGS = frozenset({"text", "list", "ids", "texts", "id_lists"})
TAG = "="
"""What other tags begin with."""
_MAX_SHOWN = 100
_JSON_TYPE = re.compile(r"\s*application/([a-z0-9.-]+\+)?json\s*(;.*)?", re.IGNORECASE | re.DOTALL)
_FORM_TYPE = re.compile(r"\s*multipart/", re.IGNORECASE)

MAX_CONTAINERS = 1 << 16
"""Most lists and objects in a body, however deep."""
MAX_STRINGS = 1 << 17
"""Most strings in a body, names of fields included."""
MAX_VALUES = 1 << 22
"""Most values in a body: 256 prompts of 16,384 token ids."""
_THREAD_THRESHOLD = 1 << 20
"""Bytes from which parsing leaves the event loop."""


async def read_body(request: Request, schema: type[B]) -> B:
    """Parses the body as JSON, and validates it. Its content type may be any but a form's in parts: ``curl -d`` calls
    JSON another form, and scripts call it text.

    Raises:
        RequestError: 415, a form in parts.
        RequestError: 400, not JSON (NaN and Infinity are not) or not what ``schema`` describes, or of
            absurdly many values.
        ClientDisconnect: the client left in mid-body.
    """
    content_type = request.headers.get("content-type", "")
    if _FORM_TYPE.match(content_type):
        raise unsupported_media_type(content_type)
    data = await _received(request)
    if len(data) < _THREAD_THRESHOLD:
        return _parse(data, schema)
    return await asyncio.to_thread(_parse, data, schema)


def is_json(content_type: str) -> bool:
    """Whether a content type is that of JSON."""
    return _JSON_TYPE.fullmatch(content_type) is not None


def unsupported_media_type(content_type: str) -> RequestError:
    """The refusal of a body by its content type."""
    given = content_type.split(";")[0].strip()[:_MAX_SHOWN] or "a body of no type"
    message = f"The body must be JSON, with the content type application/json, not {given}."
    return RequestError(message, status=415, code="unsupported_media_type")


async def _received(request: Request) -> bytes | bytearray:
    """The whole body. Unlike ``request.body()`` this keeps no copy for as long as the answer takes."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
    return data


def _parse(data: bytes | bytearray, schema: type[B]) -> B:
    _check_structure(data)
    try:
        content = pydantic_core.from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(content, dict):
        raise RequestError("The body must be a JSON object.", code="invalid_type")
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise _request_error(error) from None


def _check_structure(data: bytes | bytearray) -> None:
    """Refuses bodies of absurdly many values before any is made: each takes up to thirty times its bytes.

    Counts characters, which takes milliseconds; only where there are many are those inside strings told apart.

    Raises:
        RequestError: 400.
    """
    if len(data) <= MAX_CONTAINERS or _are_few(data.count(b'"'), _containers(data), data.count(b",")):
        return
    # What is escaped goes first; each quote that is left begins or ends a string.
    bare = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    quotes = bare.count(b'"')
    outside = b"".join(bare.split(b'"')[::2]) if _are_few(quotes) else b""
    if not _are_few(quotes, _containers(outside), outside.count(b",")):
        message = (
            f"The body holds more than {MAX_CONTAINERS} lists and objects, {MAX_STRINGS} strings "
            f"or {MAX_VALUES} values."
        )
        raise RequestError(message, code="invalid_value")


def _are_few(quotes: int, containers: int = 0, commas: int = 0) -> bool:
    return quotes <= 2 * MAX_STRINGS and containers <= MAX_CONTAINERS and commas < MAX_VALUES


def _containers(data: bytes | bytearray) -> int:
    return data.count(b"[") + data.count(b"{")


def _request_error(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False, include_context=False)[0]
    path = field_path(first["loc"])
    kind: str = first["type"]
    if kind == "missing":
        return RequestError(f"{path} is required.", code="missing_required_parameter", param=path)
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    message = first["msg"].removeprefix("Input ")
    return RequestError(f"{path} {_lower_first(message)}{_shown(first['input'])}.", code=code, param=path)


def field_path(location: tuple[int | str, ...]) -> str:
    """Pydantic's location as clients write it: ``messages[0].content``.

    A tag of a union is left out; it always stands behind the name of a field, never first.
    """
    path = ""
    for position, part in enumerate(location):
        if isinstance(part, int):
            path += f"[{part}]"
        elif position == 0:
            path = part[:_MAX_SHOWN]
        elif not part.startswith(TAG) and (part not in _TAGS or path.endswith("]")):
            path += f".{part[:_MAX_SHOWN]}"
    return path


def _lower_first(message: str) -> str:
    return message[:1].lower() + message[1:] if message else "is not valid"


def _shown(value: object) -> str:
    """Scalars are shown back; texts and structures are not, they may be long or private."""
    if isinstance(value, bool | int | float) and len(repr(value)) <= _MAX_SHOWN:
        return f", not {value!r}"
    return ""
