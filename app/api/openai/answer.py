"""What chat and completions do alike: one request's way from admission to its last byte."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import structlog
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from app.api.disconnect import UntilDisconnect
from app.api.errors import error_body, internal_error
from app.api.generations import read_deltas, read_whole, submitted
from app.api.json import encode, json_response
from app.api.middleware import arrival, request_id
from app.api.schemas.requests import GenerationBody
from app.api.schemas.usage import Usage, total_usage
from app.api.service import Service
from app.api.sse import DONE, EventStream
from app.api.timing import server_timing
from app.errors import RequestError
from app.serving.generation import Completion, Generation
from app.serving.served import Served
from app.serving.types import ChoiceDelta, GenerationRequest
from app.types import SamplingParams

ChunkUsage = Usage | UnsetType | None
"""In a stream's chunks: the usage so far, null until the last chunk, or no such field."""

_log = structlog.get_logger("tuili.api")


@dataclass(frozen=True, slots=True)
class Head:
    """What an answer, and each of its chunks, says of itself."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class Writer(Protocol):
    """How an endpoint writes one answer down."""

    def chunks(
        self, prompt: int, delta: ChoiceDelta, generation: Generation, usage: ChunkUsage, /
    ) -> Sequence[msgspec.Struct]:
        """The events for a delta of a prompt's generation: one, none (nothing to see) or several (held back before)."""

    def usage_chunk(self, usage: Usage) -> msgspec.Struct:
        """The event with the usage and no choices."""

    def whole(self, completions: Sequence[Sequence[Completion]], usage: Usage) -> msgspec.Struct:
        """The whole answer, given the choices of each prompt."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A request that is ready to be submitted, and how it is answered."""

    service: Service
    served: Served
    endpoint: str
    """The route's template."""
    body: GenerationBody
    requests: Sequence[GenerationRequest]
    """One a prompt."""
    writer: Writer
    headers: Mapping[str, str]

    def response(self, request: Request) -> Response:
        """Submits, reads and sends; ends everything at once when the client leaves."""
        stream = bool(self.body.stream)
        http_id = request_id(request.scope)

        async def work(send: Send) -> None:
            async with submitted(
                self.service, self.served, self.requests, request_id=http_id, endpoint=self.endpoint, stream=stream
            ) as generations:
                if stream:
                    await self._send_events(EventStream(send, self.headers), generations, http_id)
                else:
                    whole = self.writer.whole(await read_whole(generations), _usage(generations))
                    headers = {**self.headers, **server_timing(generations)}
                    await json_response(whole, headers=headers)(request.scope, request.receive, send)

        return UntilDisconnect(work)

    async def _send_events(self, events: EventStream, generations: Sequence[Generation], http_id: str) -> None:
        try:
            async with events.kept_alive(self.service.settings.keepalive_interval):
                await self._send_deltas(events, generations)
        except RequestError as error:
            if not events.started:
                raise
            await events.event(error_body(error))
        except Exception:
            if not events.started:
                raise
            _log.exception("stream failed")
            await events.event(error_body(internal_error(http_id)))
        await events.end()

    async def _send_deltas(self, events: EventStream, generations: Sequence[Generation]) -> None:
        options = self.body.stream_options
        include_usage = bool(options and options.include_usage)
        continuous = bool(options and options.continuous_usage_stats)

        async def send(prompt: int, delta: ChoiceDelta) -> None:
            if not events.started:
                events.headers.update(server_timing(generations))
            usage: ChunkUsage = _usage(generations) if continuous else None if include_usage else UNSET
            for chunk in self.writer.chunks(prompt, delta, generations[prompt], usage):
                await events.event(encode(chunk))

        await read_deltas(generations, send)
        if include_usage:
            await events.event(encode(self.writer.usage_chunk(_usage(generations))))
        await events.event(DONE)


def _usage(generations: Sequence[Generation]) -> Usage:
    return total_usage(generation.usage for generation in generations)


def head(answer_id: str, served: Served, asked: str | None) -> Head:
    """Begins an answer, under the name that its model was asked for by."""
    return Head(answer_id, int(time.time()), asked or served.name, served.fingerprint())


def is_strict(request: Request, service: Service) -> bool:
    """Whether unknown fields are refused: the ``strict`` query parameter, else the server's setting.

    Raises:
        RequestError: 400, the parameter is neither true nor false.
    """
    given = request.query_params.get("strict")
    if given is None:
        return service.settings.strict_params
    if given.lower() not in ("true", "false", "1", "0"):
        raise RequestError("strict is true or false.", code="invalid_value", param="strict")
    return given.lower() in ("true", "1")


def deadline(request: Request, asked: float | None, service: Service) -> float | None:
    """Instant of ``time.monotonic`` at which a request is given up.

    Args:
        asked: seconds from its arrival that it wants at most; the server may allow less.
    """
    limits = [limit for limit in (asked, service.settings.default_timeout) if limit is not None]
    return arrival(request.scope) + min(limits) if limits else None


def generation_request(
    name: str, prompt: list[int], params: SamplingParams, body: GenerationBody, deadline: float | None
) -> GenerationRequest:
    """One prompt's request to the text side."""
    return GenerationRequest(
        request_id=name,
        prompt_token_ids=prompt,
        params=params,
        n=body.n or 1,
        priority=body.priority or 0,
        deadline=deadline,
        cache_salt=body.cache_salt or "",
    )
