"""The OpenAPI document, out of the very structs that are parsed and written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.api.scope import NamedRoute

_KEY_ERRORS = {401: "No API key, or none that is valid.", 403: "The API key lacks the scope that the route needs."}
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x_api_key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}

GENERATE_ERRORS = {
    400: "The request cannot be served; the message names the field.",
    403: "A page of a foreign origin asks, or by a foreign host, and the server needs no key.",
    404: "There is no such model.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "The queue is full; `Retry-After` says when to try again.",
    499: "The request was cancelled through `/v1/requests/{id}`.",
    500: "A fault of the server.",
    503: "Loading, draining, or without an engine; `Retry-After` says when to try again.",
    504: "The request's time was up before it was done.",
}
"""Errors of a route that generates: status and when it comes."""


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def takes(body: type[BaseModel], examples: Mapping[str, Any]) -> dict[str, Any]:
    """A route's request body; routes parse it themselves, for errors in the protocol's own shape."""
    content = {"application/json": {"schema": _ref(body.__name__), "examples": dict(examples)}}
    strict = {
        "name": "strict",
        "in": "query",
        "description": "Refuse fields that nobody knows.",
        "schema": {"type": "boolean"},
    }
    return {"requestBody": {"required": True, "content": content}, "parameters": [strict]}


def documented_answers(
    error: type[msgspec.Struct],
    errors: Mapping[int, str],
    *,
    whole: type[msgspec.Struct] | None,
    event: type[msgspec.Struct] | Sequence[type[msgspec.Struct]] | None = None,
    in_list: bool = False,
    last: str | None = None,
    stream_type: str = "text/event-stream",
) -> dict[int | str, dict[str, Any]]:
    """A route's responses, in any protocol.

    Args:
        error: what the body of an error is.
        errors: what each status of an error means.
        whole: what the whole answer is; ``in_list``: in a list.
        event: what an event of the stream is, or may be, if the route has one.
        last: data of a stream's last event, where it is no JSON.
        stream_type: content type of the stream. Events are server-sent ones, or else lines of JSON.
    """
    content: dict[str, Any] = {}
    if whole is not None:
        ref = _ref(whole.__name__)
        content["application/json"] = {"schema": {"type": "array", "items": ref} if in_list else ref}
    if event is not None:
        shapes = {"anyOf": [_ref(shape.__name__) for shape in (*_several(event), error)]}
        is_lines = stream_type != "text/event-stream"
        content[stream_type] = {"schema": shapes} if is_lines else _events(shapes, last=last)
    documented: dict[int | str, dict[str, Any]] = {200: {"description": "The answer.", "content": content}}
    for status, text in errors.items():
        documented[status] = _error(error, status, text)
    return documented


def _several(event: type[msgspec.Struct] | Sequence[type[msgspec.Struct]]) -> Sequence[type[msgspec.Struct]]:
    return (event,) if isinstance(event, type) else event


def _events(shapes: dict[str, Any], *, last: str | None = None) -> dict[str, Any]:
    """A stream: each event is an object whose data are JSON in a text, a last one's may be ``last``."""
    data: dict[str, Any] = {"type": "string", "contentMediaType": "application/json", "contentSchema": shapes}
    if last is not None:
        data = {"anyOf": [{"const": last}, data]}
    return {"schema": {"type": "object", "required": ["data"], "properties": {"data": data}}}


def _error(shape: type[msgspec.Struct], status: int, text: str) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": text, "content": {"application/json": {"schema": _ref(shape.__name__)}}}
    return answer | {"headers": _RETRY_AFTER} if status in (429, 503) else answer


def probe_answers(health: type[msgspec.Struct]) -> dict[int | str, dict[str, Any]]:
    """A probe's responses."""
    content = {"application/json": {"schema": _ref(health.__name__)}}
    return {
        200: {"description": "The probe passes.", "content": content},
        503: {"description": "It fails; the body says why.", "content": content},
    }


def install_openapi(
    app: FastAPI,
    *,
    bodies: Sequence[type[BaseModel]],
    answers: Sequence[type[msgspec.Struct]],
    error_schema: Callable[[str], type[msgspec.Struct]],
    open_paths: Collection[str] | None,
) -> None:
    """Gives ``app`` a document that has the schemas of all bodies and answers, and the route of it.

    Args:
        answers: structs of all answers, errors included.
        error_schema: struct of an error, by the route's path.
        open_paths: paths that need no API key; None where none does.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                summary=app.summary,
                description=app.description,
                routes=app.routes,
            )
            schema.setdefault("components", {})["schemas"] = _schemas(bodies, answers)
            if open_paths is not None:
                _declare_keys(schema, open_paths, error_schema)
            app.openapi_schema = schema
        return app.openapi_schema

    async def read(_request: Request) -> Response:
        return JSONResponse(document())

    app.openapi = document  # type: ignore[method-assign]
    app.routes.append(NamedRoute("/openapi.json", read, methods=["GET"], include_in_schema=False))


def _declare_keys(
    document: dict[str, Any], open_paths: Collection[str], error_schema: Callable[[str], type[msgspec.Struct]]
) -> None:
    document["components"]["securitySchemes"] = _SCHEMES
    for path, operations in document["paths"].items():
        if path in open_paths:
            continue
        for operation in operations.values():
            operation["security"] = [{name: []} for name in _SCHEMES]
            for status, text in _KEY_ERRORS.items():
                operation["responses"][str(status)] = _error(error_schema(path), status, text)


def _schemas(bodies: Sequence[type[BaseModel]], answers: Sequence[type[msgspec.Struct]]) -> dict[str, Any]:
    template = "#/components/schemas/{}"
    _, read = models_json_schema([(body, "validation") for body in bodies], ref_template=template.format("{model}"))
    _, written = msgspec.json.schema_components(answers, ref_template=template.format("{name}"))
    return {**read["$defs"], **written}
