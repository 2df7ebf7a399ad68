"""What a protocol is made of: endpoints that read requests and write answers. :mod:`app.api.exchange` does the rest."""

from __future__ import annotations

import typing
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
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
    """Text that changes when the same request may be answered differently."""
    prompts: Sequence[EncodedPrompt]
    tokenizer: Tokenizer


class AnswerWriter(typing.Protocol):
    """Writes one answer, whole or as a stream. Generations are those of the request, one a prompt.

    A class of writers inherits from this one, for what few of them do otherwise: :meth:`begin`, :meth:`conclude` and
    :meth:`fail`.
    """

    def begin(self, generations: Sequence[Generation], /) -> Iterable[bytes]:  # noqa: ARG002
        """Bytes of the events that a stream begins with, before there is any text."""
        return ()

    async def conclude(
        self,
        generations: Sequence[Generation],  # noqa: ARG002
        /,
        *,
        completions: Sequence[Sequence[Completion]] | None = None,  # noqa: ARG002
        error: RequestError | None = None,  # noqa: ARG002
    ) -> None:
        """Nothing more comes: time to keep the answer. Called before `end`, `whole` or `fail`, and always again at the
        request's end, when it may be the first time: the client has left.

        Args:
            completions: the choices of each prompt, where the answer is whole.
            error: why it ends; None if it is complete.
        """
        return

    def headers(self, generations: Sequence[Generation], /) -> Mapping[str, str]:
        """Headers of the answer, known when its first frame leaves."""

    def frames(self, prompt: int, delta: ChoiceDelta, generations: Sequence[Generation], /) -> Iterable[bytes]:
        """Bytes of the events for a delta of a prompt's generation: of one event, none (nothing to see) or several."""

    def end(self, generations: Sequence[Generation], /) -> Iterable[bytes]:
        """Bytes of the events that follow the last delta."""

    def fail(self, error: RequestError, generations: Sequence[Generation], /) -> Iterable[bytes] | None:  # noqa: ARG002
        """Bytes of the last events of a stream that failed; None: that of the protocol."""
        return None

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
    unheeded: Sequence[str] = ()
    """Names of fields that the answer does without; they are named back."""
    keep_alive: float | None = None
    """Seconds that the model is to stay loaded without work, where models come and go."""
    unload: Callable[[str], bytes] | None = None
    """The request asks for nothing but that the model goes: body of the answer, given the model's name."""


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
        look_up: the same, where that takes what the service keeps; in place of ``read``.
        parts: the parts of a body whose unknown fields are named back, or refused.
        id_prefix: beginning of the ids of answers.
        numbers_prompts: ids of generations carry the number of their prompt.
        unique_ids: no two answers ever have one id, whatever the clients call their requests.
    """

    path: str
    name: str
    summary: str
    description: str
    request_body: dict[str, Any]
    responses: dict[int | str, dict[str, Any]]
    schema: type[B]
    read: Callable[[B], ReadRequest] | None = None
    look_up: Callable[[B, Service], Awaitable[ReadRequest]] | None = None
    parts: Callable[[B], Iterable[BaseModel]] = _one_part
    id_prefix: str
    numbers_prompts: bool = False
    unique_ids: bool = False

    async def read_with(self, body: B, service: Service) -> ReadRequest:
        """What a body asks for. Raises :class:`RequestError`."""
        if self.look_up is not None:
            return await self.look_up(body, service)
        if self.read is None:
            raise TypeError(f"{self.name} does not read")
        return self.read(body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """A protocol that clients speak.

    Args:
        tag: name of its group of routes in the OpenAPI document.
        endpoints: routes that generate.
        routes: makes its other routes over a service.
        paths: paths whose errors have its shape, those of unknown methods and missing keys included.
        below: paths of which the same holds of all that is below them.
        write_error: status and JSON of an error, for a response.
        error_event: bytes of an error as the last event of a stream.
        stream_type: content type of a stream.
        stream_comment: what a stream sends in silence; clients skip it.
        error_schema: struct of the JSON of an error.
        answers: structs of everything else that it answers with, for the OpenAPI document.
        bodies: what its other routes take, for the OpenAPI document.
        request_id_header: name of a header in which its clients look for a request's id, besides the server's own.
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
    below: frozenset[str] = frozenset()
    bodies: Sequence[type[BaseModel]] = ()
    request_id_header: str | None = None

    def owns(self, path: str) -> bool:
        """Whether errors of a path have its shape."""
        return path in self.paths or any(path.startswith(f"{base}/") for base in self.below)
