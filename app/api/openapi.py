"""The OpenAPI document, out of the very structs that are parsed and written."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.api.errors import FLAT_PATHS
from app.api.schemas.chat import ChatBody, ChatChunk, ChatCompletion
from app.api.schemas.completions import Completion, CompletionBody
from app.api.schemas.errors import ErrorResponse
from app.api.schemas.generate import FlatError, GenerateBody, Generated, Info, RootBody, StreamEvent
from app.api.schemas.health import Health
from app.api.schemas.live import LiveRequest
from app.api.schemas.models import ModelCard, ModelList
from app.api.schemas.tokenize import DetokenizeBody, Detokenized, TokenizeBody, Tokenized, TokenizerInfo

_BODIES: tuple[type[BaseModel], ...] = (
    ChatBody,
    CompletionBody,
    GenerateBody,
    RootBody,
    TokenizeBody,
    DetokenizeBody,
)
_ANSWERS: tuple[type[msgspec.Struct], ...] = (
    ChatCompletion,
    ChatChunk,
    Completion,
    Generated,
    StreamEvent,
    FlatError,
    Info,
    ModelList,
    ModelCard,
    Tokenized,
    Detokenized,
    TokenizerInfo,
    LiveRequest,
    Health,
    ErrorResponse,
)
_ERRORS = {
    400: "The request cannot be served; the message names the field.",
    404: "There is no such model or request.",
    413: "The body is too large.",
    429: "The queue is full; `Retry-After` says when to try again.",
    499: "The request was cancelled through `/v1/requests/{id}`.",
    500: "A fault of the server.",
    503: "Loading, draining, or without an engine; `Retry-After` says when to try again.",
    504: "The request's time was up before it was done.",
}
_KEY_ERRORS = {401: "No API key, or none that is valid.", 403: "The API key lacks the scope that the route needs."}
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x_api_key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
_FLAT_ERRORS = {
    413: "The body is too large.",
    422: "The request cannot be served; the message names the field.",
    424: "The generation failed or was cancelled, or its time was up.",
    429: "The queue is full; `Retry-After` says when to try again.",
    500: "A fault of the server.",
    503: "Loading, draining, or without an engine; `Retry-After` says when to try again.",
}


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


def answers(
    whole: type[msgspec.Struct], event: type[msgspec.Struct] | None = None, *, errors: Collection[int] = (404,)
) -> dict[int | str, dict[str, Any]]:
    """A route's responses: the whole answer, the events of its stream if it has one, then with all errors."""
    content: dict[str, Any] = {"application/json": {"schema": _ref(whole.__name__)}}
    if event is not None:
        content["text/event-stream"] = _events(event, ErrorResponse, last="[DONE]")
    documented: dict[int | str, dict[str, Any]] = {200: {"description": "The answer.", "content": content}}
    for status in _ERRORS if event is not None else errors:
        documented[status] = _error(ErrorResponse, status, _ERRORS[status])
    return documented


def flat_answers(
    whole: type[msgspec.Struct] | None = None,
    event: type[msgspec.Struct] | None = None,
    *,
    in_list: bool = False,
    errors: Collection[int] = tuple(_FLAT_ERRORS),
) -> dict[int | str, dict[str, Any]]:
    """Responses of a route in the shapes of text-generation-inference; ``in_list``: the whole answer is in a list."""
    content: dict[str, Any] = {}
    if whole is not None:
        ref = _ref(whole.__name__)
        content["application/json"] = {"schema": {"type": "array", "items": ref} if in_list else ref}
    if event is not None:
        content["text/event-stream"] = _events(event, FlatError)
    documented: dict[int | str, dict[str, Any]] = {200: {"description": "The answer.", "content": content}}
    for status in errors:
        documented[status] = _error(FlatError, status, _FLAT_ERRORS[status])
    return documented


def _events(event: type[msgspec.Struct], error: type[msgspec.Struct], *, last: str | None = None) -> dict[str, Any]:
    """A stream: each event is an object whose data are JSON in a text, a last one's may be ``last``."""
    shapes = {"anyOf": [_ref(event.__name__), _ref(error.__name__)]}
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


def install_openapi(app: FastAPI, *, keys: bool, open_paths: Collection[str]) -> None:
    """Gives ``app`` a document that has the schemas of all bodies and answers.

    Args:
        keys: API keys are needed, but on ``open_paths``.
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
            schema.setdefault("components", {})["schemas"] = _schemas()
            if keys:
                _declare_keys(schema, open_paths)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _declare_keys(document: dict[str, Any], open_paths: Collection[str]) -> None:
    document["components"]["securitySchemes"] = _SCHEMES
    for path, operations in document["paths"].items():
        if path in open_paths:
            continue
        shape = FlatError if path in FLAT_PATHS else ErrorResponse
        for operation in operations.values():
            operation["security"] = [{name: []} for name in _SCHEMES]
            for status, text in _KEY_ERRORS.items():
                operation["responses"][str(status)] = _error(shape, status, text)


def _schemas() -> dict[str, Any]:
    template = "#/components/schemas/{}"
    _, bodies = models_json_schema([(body, "validation") for body in _BODIES], ref_template=template.format("{model}"))
    _, answered = msgspec.json.schema_components(_ANSWERS, ref_template=template.format("{name}"))
    return {**bodies["$defs"], **answered}
