"""How one request is served, the same for every protocol: permit, requests, deltas, frames, end.

A protocol reads the request and writes the answer (:mod:`app.api.endpoint`); all that may go wrong in between, and all
that must be given back, is here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import structlog
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from app.api.body import read_body
from app.api.caller import owner, tenant_salt
from app.api.disconnect import UntilDisconnect
from app.api.endpoint import AnswerHead, AnswerWriter, Endpoint, Protocol, ReadRequest
from app.api.errors import internal_error, log_refusal
from app.api.extras import ignored_fields, ignored_header, is_strict, unheeded
from app.api.scope import deadline, leave_to_ledger, request_id
from app.api.service import Service
from app.api.sse import EventStream
from app.errors import RequestError
from app.serving.generation import Completion, Generation
from app.serving.resident import Resident
from app.serving.served import Served
from app.serving.types import ChoiceDelta

T = TypeVar("T")
B = TypeVar("B", bound=BaseModel)
OnDelta = Callable[[int, ChoiceDelta], Awaitable[None]]

_log = structlog.get_logger("tuili.api")

_CLIENT_LEFT = RequestError("The client left before the answer was complete.", status=499, code="client_left")


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
        ignored = [name for part in endpoint.parts(body) for name in ignored_fields(part, strict=strict)]
        read = await endpoint.read_with(body, service)
        served = service.models.resolve(read.model)
        if read.unload is not None and served.resident is not None:
            return _unload(served.resident, read, read.unload, protocol)
        return UntilDisconnect(
            _Exchange(service, served, protocol, endpoint, request, read, ignored, strict=strict).run
        )

    return answer


def _unload(resident: Resident, read: ReadRequest, body: Callable[[str], bytes], protocol: Protocol) -> Response:
    """Has a model go once it has no work, and says so."""
    resident.expire_soon()
    said = body(read.model or resident.name)
    if read.stream:
        return Response(said + b"\n", 200, None, protocol.stream_type)
    return Response(said, 200, None, "application/json")


@dataclass(frozen=True, slots=True)
class _Exchange:
    """One request that was read, and is to be answered."""

    service: Service
    served: Served
    protocol: Protocol
    endpoint: Endpoint[Any]
    request: Request
    read: ReadRequest
    ignored: Sequence[str]
    """Names of fields that nobody knows."""
    strict: bool
    """They were refused, and others would be."""

    async def run(self, send: Send) -> None:
        """Generates and sends; whatever the request holds is given back when this returns, or is cancelled.

        Where models come and go it waits for its own first, which stays while it is used.
        """
        if not self.read.stream:
            async with self._model_in_use():
                await self._answer(send, None)
            return
        headers = {**ignored_header(self.ignored), "content-type": self.protocol.stream_type}
        events = EventStream(send, headers, comment=self.protocol.stream_comment)
        try:
            async with contextlib.AsyncExitStack() as holding:
                await self._wait_for_model(holding, events)
                await self._answer(send, events)
        except Exception as exception:
            if not events.started or events.ended:
                raise
            # Comments began the response while the model was waited for.
            error = self._told(exception)
            log_refusal(error, error.status, self.request.scope)
            await events.send(self.protocol.error_event(error))
            await events.end()

    def _model_in_use(self) -> contextlib.AbstractAsyncContextManager[None]:
        return self.served.in_use(self._ends(), endpoint=self.endpoint.path, keep_alive=self.read.keep_alive)

    async def _wait_for_model(self, holding: contextlib.AsyncExitStack, events: EventStream) -> None:
        """Has ``holding`` keep the model; a wait is filled with comments."""
        is_ready = self.served.resident is None
        interval = 0.0 if is_ready else self.service.settings.keepalive_interval
        async with events.kept_alive(interval):
            await holding.enter_async_context(self._model_in_use())

    def _told(self, exception: Exception) -> RequestError:
        """What a client is told of a failure."""
        if isinstance(exception, RequestError):
            return exception
        _log.exception("stream failed", exc_info=exception)
        return internal_error(request_id(self.request.scope))

    def _unheeded(self) -> Iterator[str]:
        """Names of known fields that this model, or this server, does not heed. Raises :class:`RequestError` 400."""
        read, strict = self.read, self.strict
        yield from read.unheeded
        if read.keep_alive is not None and self.served.resident is None:
            yield from unheeded(["keep_alive"], strict=strict)
        yield from unheeded(read.task.unread(self.served.generator), strict=strict)

    def _ends(self) -> float | None:
        return deadline(self.request.scope, self.read.timeout, self.service.settings.default_timeout)

    async def _answer(self, send: Send, events: EventStream | None) -> None:
        """Generates, and sends the answer: as ``events``, or whole."""
        headers = ignored_header([*self.ignored, *self._unheeded()])
        self.read.task.check(self.service.settings)
        leave_to_ledger(self.request.scope)
        http_id, answer_id = request_id(self.request.scope), self._answer_id()
        writer, generations = await self._begin(answer_id, self._ends())
        alias = answer_id if self.endpoint.unique_ids else None
        live = self.service.live.track(http_id, generations, owner=owner(), answer_id=alias)
        async with live:  # closes the generations, too
            try:
                if events is not None:
                    events.headers.update(headers)
                    await self._send_events(events, writer, generations)
                else:
                    await self._send_whole(send, headers, writer, generations)
            finally:
                await writer.conclude(generations, error=_CLIENT_LEFT)

    def _answer_id(self) -> str:
        endpoint = self.endpoint
        if endpoint.unique_ids:
            return f"{endpoint.id_prefix}_{uuid.uuid4().hex}"
        return f"{endpoint.id_prefix}-{request_id(self.request.scope)}"

    async def _begin(self, answer_id: str, ends: float | None) -> tuple[AnswerWriter, list[Generation]]:
        """Encodes the prompts, with the room that they need, and submits them.

        Raises:
            RequestError: the request was refused; nothing of it is left running.
        """
        endpoint, task = self.endpoint, self.read.task
        generator = self.served.generator
        with generator.permit(answer_id, endpoint=endpoint.path, n=task.num_sequences) as permit:
            prompts = await task.encode(generator, ends)
            ids = [answer_id]
            if endpoint.numbers_prompts:
                ids = [f"{answer_id}-{index}" for index in range(len(prompts))]
            requests = task.requests(generator, prompts, ids, ends, cache_salt=tenant_salt(task.cache_salt))
            if self.served.adapter:
                requests = [replace(each, adapter=self.served.adapter) for each in requests]
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

    async def _send_whole(
        self, send: Send, headers: Mapping[str, str], writer: AnswerWriter, generations: Sequence[Generation]
    ) -> None:
        completions = await _read_whole(generations)
        await writer.conclude(generations, completions=completions)
        body = writer.whole(completions, generations)
        headers = {**headers, **writer.headers(generations)}
        await Response(body, 200, headers, "application/json")(self.request.scope, self.request.receive, send)

    async def _send_events(self, events: EventStream, writer: AnswerWriter, generations: Sequence[Generation]) -> None:
        async def send_frames(frames: Iterable[bytes]) -> None:
            for frame in frames:
                if not events.started:
                    events.headers.update(writer.headers(generations))
                await events.send(frame)

        async def send_delta(prompt: int, delta: ChoiceDelta) -> None:
            await send_frames(writer.frames(prompt, delta, generations))

        try:
            async with events.kept_alive(self.service.settings.keepalive_interval):
                await send_frames(writer.begin(generations))
                await _read_deltas(generations, send_delta)
                await writer.conclude(generations)
                await send_frames(writer.end(generations))
        except Exception as exception:
            if not events.started:
                raise
            error = self._told(exception)
            await writer.conclude(generations, error=error)
            last = writer.fail(error, generations)
            await send_frames([self.protocol.error_event(error)] if last is None else last)
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
