"""The OpenAPI document, out of the very structs that are parsed and written."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.api.schemas.chat import ChatBody, ChatChunk, ChatCompletion
from app.api.schemas.completions import Completion, CompletionBody
from app.api.schemas.errors import ErrorResponse
from app.api.schemas.generate import FlatError, GenerateBody, Generated, StreamEvent
from app.api.schemas.health import Health
from app.api.schemas.live import LiveRequest
from app.api.schemas.models import ModelCard, ModelList
from app.api.schemas.tokenize import DetokenizeBody, Detokenized, TokenizeBody, Tokenized, TokenizerInfo

_BODIES: tuple[type[BaseModel], ...] = (ChatBody, CompletionBody, GenerateBody, TokenizeBody, DetokenizeBody)
_ANSWERS: tuple[type[msgspec.Struct], ...] = (
    ChatCompletion,
    ChatChunk,
    Completion,
    Generated,
    StreamEvent,
    FlatError,
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
    500: "A fault of the server.",
    503: "Loading, draining, or without an engine; `Retry-After` says when to try again.",
    504: "The request's time was up before it was done.",
}
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
        content["text/event-stream"] = {"schema": _ref(event.__name__)}
    documented: dict[int | str, dict[str, Any]] = {200: {"description": "The answer.", "content": content}}
    for status in _ERRORS if event is not None else errors:
        error = {"application/json": {"schema": _ref(ErrorResponse.__name__)}}
        documented[status] = {"description": _ERRORS[status], "content": error}
    return documented


def flat_answers(
    whole: type[msgspec.Struct] | None = None, event: type[msgspec.Struct] | None = None
) -> dict[int | str, dict[str, Any]]:
    """Responses of a route in the shapes of text-generation-inference."""
    media = {"application/json": whole, "text/event-stream": event}
    content = {name: {"schema": _ref(schema.__name__)} for name, schema in media.items() if schema is not None}
    documented: dict[int | str, dict[str, Any]] = {200: {"description": "The answer.", "content": content}}
    for status, text in _FLAT_ERRORS.items():
        error = {"application/json": {"schema": _ref(FlatError.__name__)}}
        documented[status] = {"description": text, "content": error}
    return documented


def probe_answers(health: type[msgspec.Struct]) -> dict[int | str, dict[str, Any]]:
    """A probe's responses."""
    content = {"application/json": {"schema": _ref(health.__name__)}}
    return {
        200: {"description": "The probe passes.", "content": content},
        503: {"description": "It fails; the body says why.", "content": content},
    }


def install_openapi(app: FastAPI) -> None:
    """Gives ``app`` a document that has the schemas of all bodies and answers."""

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
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _schemas() -> dict[str, Any]:
    template = "#/components/schemas/{}"
    _, bodies = models_json_schema([(body, "validation") for body in _BODIES], ref_template=template.format("{model}"))
    _, answered = msgspec.json.schema_components(_ANSWERS, ref_template=template.format("{name}"))
    return {**bodies["$defs"], **answered}
