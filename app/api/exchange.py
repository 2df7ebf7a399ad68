"""One request's way, the same for every protocol: permit, requests, deltas, frames, end.

A protocol reads the request and writes the answer (:mod:`app.api.endpoint`); all that may go wrong in between, and all
that must be given back, is here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from app.api.auth import owner, tenant_salt
from app.api.body import read_body
from app.api.disconnect import UntilDisconnect
from app.api.endpoint import AnswerHead, AnswerWriter, Endpoint, Protocol, ReadRequest
from app.api.errors import internal_error
from app.api.extras import ignored_headers, is_strict
from app.api.scope import deadline, request_id
from app.api.service import Service
from app.api.sse import EventStream
from app.errors import RequestError
from app.serving.generation import Completion, Generation
from app.serving.served import Served
from app.serving.types import ChoiceDelta

T = TypeVar("T")
B = TypeVar("B", bound=BaseModel)
OnDelta = Callable[[int, ChoiceDelta], Awaitable[None]]

_log = structlog.get_logger("tuili.api")


def router(protocol: Protocol, service: Service) -> APIRouter:
    """The routes of a protocol that generate, over one service."""
    routes = APIRouter(tags=[protocol.tag])
    for endpoint in protocol.endpoints:
        routes.add_api_route(
            endpoint.path,
            _route(protocol, endpoint, service),
            methods=["POST"],
            name=endpoint.name,
            summary=endpoint.summary,
            description=endpoint.description,
            openapi_extra=endpoint.request_body,
            responses=endpoint.responses,
        )
    return routes


def _route(protocol: Protocol, endpoint: Endpoint[B], service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        body = await read_body(request, endpoint.schema)
        strict = is_strict(request, default=service.settings.strict_params)
        headers = ignored_headers(endpoint.parts(body), strict=strict)
        read = endpoint.read(body)
        served = service.models.resolve(read.model)
        read.task.check(service.settings)
        return UntilDisconnect(_Exchange(service, served, protocol, endpoint, request, read, headers).run)

    return answer


@dataclass(frozen=True, slots=True)
class _Exchange:
    """One request that was read, and is to be answered."""

    service: Service
    served: Served
    protocol: Protocol
    endpoint: Endpoint[Any]
    request: Request
    read: ReadRequest
    headers: Mapping[str, str]
    """Headers of the answer, known already."""

    async def run(self, send: Send) -> None:
        """Generates and sends; whatever the request holds is given back when this returns, or is cancelled."""
        writer, generations = await self._begin()
        http_id = request_id(self.request.scope)
        async with self.service.live.track(http_id, generations, owner=owner()):  # closes the generations, too
            if self.read.stream:
                headers = {**self.headers, "content-type": self.protocol.stream_type}
                events = EventStream(send, headers, comment=self.protocol.stream_comment)
                await self._send_events(events, writer, generations)
            else:
                body = writer.whole(await _read_whole(generations), generations)
                headers = {**self.headers, **writer.headers(generations)}
                response = Response(body, 200, headers, "application/json")
                await response(self.request.scope, self.request.receive, send)

    async def _begin(self) -> tuple[AnswerWriter, list[Generation]]:
        """Encodes the prompts, with the room that they need, and submits them.

        Raises:
            RequestError: the request was refused; nothing of it is left running.
        """
        service, endpoint, task = self.service, self.endpoint, self.read.task
        generator = self.served.generator
        answer_id = f"{endpoint.id_prefix}-{request_id(self.request.scope)}"
        ends = deadline(self.request.scope, self.read.timeout, service.settings.default_timeout)
        with generator.permit(answer_id, endpoint=endpoint.path, n=task.num_sequences) as permit:
            prompts = await task.encode(generator, ends)
            ids = [answer_id]
            if endpoint.numbers_prompts:
                ids = [f"{answer_id}-{index}" for index in range(len(prompts))]
            requests = task.requests(generator, prompts, ids, ends, cache_salt=tenant_salt(task.cache_salt))
            head = AnswerHead(
                id=answer_id,
                created=int(time.time()),
                model=self.read.model or self.served.name,
                fingerprint=self.served.fingerprint(),
                prompts=prompts,
                tokenizer=generator.tokenizer,
            )
            writer = self.read.writer(head)
            return writer, generator.submit(permit, requests, endpoint=endpoint.path, stream=self.read.stream)

    async def _send_events(self, events: EventStream, writer: AnswerWriter, generations: Sequence[Generation]) -> None:
        async def send(prompt: int, delta: ChoiceDelta) -> None:
            if not events.started:
                events.headers.update(writer.headers(generations))
            for frame in writer.frames(prompt, delta, generations):
                await events.send(frame)

        try:
            async with events.kept_alive(self.service.settings.keepalive_interval):
                await _read_deltas(generations, send)
                for frame in writer.end(generations):
                    await events.send(frame)
        except RequestError as error:
            if not events.started:
                raise
            await events.send(self.protocol.error_event(error))
        except Exception:
            if not events.started:
                raise
            _log.exception("stream failed")
            await events.send(self.protocol.error_event(internal_error(request_id(self.request.scope))))
        await events.end()


async def _read_deltas(generations: Sequence[Generation], on_delta: OnDelta) -> None:
    """Reads all generations at once, calling ``on_delta(prompt index, delta)`` as text comes.

    Raises:
        RequestError: the first generation that failed; the others are no longer read.
    """

    async def read(index: int, generation: Generation) -> None:
        async for delta in generation:
            await on_delta(index, delta)

    if len(generations) == 1:
        await read(0, generations[0])
    else:
        await _all_at_once([read(index, generation) for index, generation in enumerate(generations)])


async def _read_whole(generations: Sequence[Generation]) -> list[list[Completion]]:
    """Reads all generations to their end: a list of choices for each.

    Raises:
        RequestError: the first generation that failed.
    """
    return await _all_at_once([generation.collect() for generation in generations])


async def _all_at_once(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(part) for part in work]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures
    return [task.result() for task in tasks]
