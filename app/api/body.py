"""Request bodies: bytes to a validated schema, every fault a 400 that names the field."""

from __future__ import annotations

from typing import TypeVar

import pydantic_core
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from app.serving.errors import RequestError

B = TypeVar("B", bound=BaseModel)

# Tags of unions in pydantic's locations: the form that a value was taken for, no part of its path.
_TAGS = frozenset({"text", "list", "ids", "texts", "id_lists"})
_MAX_SHOWN = 100


async def read_body(request: Request, schema: type[B]) -> B:
    """Parses the body as JSON, whatever its content type says, and validates it.

    Raises:
        RequestError: 400, not JSON (NaN and Infinity are not) or not what ``schema`` describes.
        ClientDisconnect: the client left in mid-body.
    """
    data = await request.body()
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
        elif part not in _TAGS or path.endswith("]"):
            path += f".{part[:_MAX_SHOWN]}"
    return path


def _lower_first(message: str) -> str:
    return message[:1].lower() + message[1:] if message else "is not valid"


def _shown(value: object) -> str:
    """Scalars are shown back; texts and structures are not, they may be long or private."""
    if isinstance(value, bool | int | float) and len(repr(value)) <= _MAX_SHOWN:
        return f", not {value!r}"
    return ""
