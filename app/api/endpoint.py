"""What a protocol is made of: endpoints that read requests and write answers. :mod:`app.api.exchange` does the rest."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel

from app.api.service import Service
from app.api.sse import COMMENT, EVENT_STREAM
from app.errors import RequestError
from app.serving.generation import Completion, Generation
from app.serving.types import ChoiceDelta
from app.tasks.generate import GenerateTask
from app.tasks.prompts import EncodedPrompt
from app.text.tokenizer import Tokenizer

B = TypeVar("B", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerHead:
    """Facts about an answer that are known before its first token."""

    id: str
    """Prefix of the endpoint and id of the HTTP request."""
    created: int
    """Unix time."""
    model: str
    """Name of the model, as the client asked for it."""
    fingerprint: str
    """Changes when the same request may be answered otherwise."""
    prompts: Sequence[EncodedPrompt]
    tokenizer: Tokenizer


class AnswerWriter(typing.Protocol):
    """Writes one answer, whole or as a stream. Generations are those of the request, one a prompt."""

    def headers(self, generations: Sequence[Generation], /) -> Mapping[str, str]:
        """Headers of the answer, known when its first frame leaves."""

    def frames(self, prompt: int, delta: ChoiceDelta, generations: Sequence[Generation], /) -> Iterable[bytes]:
        """Bytes of the events for a delta of a prompt's generation: of one event, none (nothing to see) or several."""

    def end(self, generations: Sequence[Generation], /) -> Iterable[bytes]:
        """Bytes of the events behind the last delta."""

    def whole(self, completions: Sequence[Sequence[Completion]], generations: Sequence[Generation], /) -> bytes:
        """Body of the whole answer, given the choices of each prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRequest:
    """A client's request as its endpoint read it."""

    task: GenerateTask
    writer: Callable[[AnswerHead], AnswerWriter]
    stream: bool
    model: str | None = None
    """Name of the model; None takes the default one."""
    timeout: float | None = None
    """Seconds after which the client gives up; the server may allow less."""


def _one_part(body: BaseModel) -> Iterable[BaseModel]:
    return (body,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint(Generic[B]):
    """A route of a protocol that answers with generated text.

    Args:
        name: name of the operation in the OpenAPI document; summary, description, request_body and responses go there
            as they are.
        schema: what a body must be.
        read: what a body asks for. Raises :class:`RequestError` 400.
        parts: the parts of a body whose unknown fields are named back, or refused.
        id_prefix: of the ids of answers.
        numbers_prompts: ids of generations carry the number of their prompt.
    """

    path: str
    name: str
    summary: str
    description: str
    request_body: dict[str, Any]
    responses: dict[int | str, dict[str, Any]]
    schema: type[B]
    read: Callable[[B], ReadRequest]
    parts: Callable[[B], Iterable[BaseModel]] = _one_part
    id_prefix: str
    numbers_prompts: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """A protocol that clients speak.

    Args:
        tag: name of its group of routes in the OpenAPI document.
        endpoints: routes that generate.
        routes: its other routes, over a service.
        paths: paths whose errors have its shape, those of unknown methods and missing keys included.
        write_error: status and JSON of an error, for a response.
        error_event: bytes of an error as the last event of a stream.
        stream_type: content type of a stream.
        stream_comment: what a stream sends in silence; clients skip it.
        error_schema: what that JSON is.
        answers: everything else that it answers with, for the OpenAPI document.
    """

    tag: str
    endpoints: Sequence[Endpoint[Any]]
    routes: Callable[[Service], APIRouter]
    paths: frozenset[str]
    write_error: Callable[[RequestError], tuple[int, bytes]]
    error_event: Callable[[RequestError], bytes]
    error_schema: type[msgspec.Struct]
    answers: Sequence[type[msgspec.Struct]]
    stream_type: str = EVENT_STREAM
    stream_comment: bytes = COMMENT
