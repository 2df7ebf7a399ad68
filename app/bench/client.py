"""Sends one request and takes down when what came back."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from app.bench.options import Options
from app.bench.prompts import Prompt
from app.client.sse import DONE, Chunk, EventDecoder, Usage, decode_chunk
from app.client.target import api_root, auth_headers, describe_body, describe_error, describe_exception

_ROUTES = {"completions": "completions", "chat": "chat/completions"}


@dataclass(kw_only=True)
class RequestResult:
    """One request, measured. Times are in seconds, those of day counted from the start of the run."""

    index: int
    scheduled: float | None
    """When an open loop meant to send it."""
    started: float
    ttft: float | None = None
    """Time to the first chunk with text; a chunk that only says who speaks is no token."""
    itl: list[float] = field(default_factory=list)
    """Gaps between chunks with text."""
    tpot: float | None = None
    """Time of a token after the first; None for answers of one token."""
    e2el: float = 0.0
    """Time to the stream's end."""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    output_chunks: int = 0
    has_usage: bool = False
    """Whether the server counted tokens. Otherwise ``output_tokens`` is the number of chunks."""
    error: str | None = None
    """Kind of failure: ``http_429``, ``connect``, ``timeout``, ``disconnected``, ``stream_error``, …"""
    message: str | None = None
    retry_after: float | None = None
    """Seconds after which a server that refused asks to be tried again."""


class _RequestError(Exception):
    def __init__(self, kind: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after


class _Answer:
    """What a stream has brought so far."""

    def __init__(self) -> None:
        self._events = EventDecoder()
        self._text_times: list[float] = []
        self._last: float | None = None
        self._usage: Usage | None = None
        self._complete = False

    def feed(self, piece: bytes, now: float) -> None:
        for data in self._events.feed(piece):
            if data == DONE:
                self._complete = True
            else:
                self._take(decode_chunk(data), now)

    def _take(self, chunk: Chunk, now: float) -> None:
        if chunk.error:
            raise _RequestError("stream_error", describe_error(chunk.error))
        self._usage = chunk.usage or self._usage
        if chunk.text:
            self._text_times.append(now)
        if chunk.text or chunk.finished:
            self._last = now
        self._complete = self._complete or chunk.finished

    def write(self, result: RequestResult, started: float) -> None:
        """Fills in the result of an answer that came to its end."""
        if not self._complete:
            raise _RequestError("incomplete", "the stream ended in the middle of the answer")
        times = self._text_times
        result.output_chunks = len(times)
        result.output_tokens = len(times)
        if self._usage is not None:
            result.has_usage = True
            result.input_tokens = self._usage.prompt_tokens
            result.output_tokens = self._usage.completion_tokens
            result.cached_tokens = self._usage.cached_tokens
        result.itl = [later - earlier for earlier, later in itertools.pairwise(times)]
        if times:
            result.ttft = times[0] - started
        if times and self._last is not None and result.output_tokens > 1:
            result.tpot = (self._last - times[0]) / (result.output_tokens - 1)


class Client:
    """Sends the requests of a run to one server."""

    def __init__(self, http: httpx.AsyncClient, options: Options, model: str, seed: int) -> None:
        self._http = http
        self._options = options
        self._url = f"{api_root(options.url)}/{_ROUTES[options.endpoint]}"
        # A compressed stream would be delivered in lumps.
        self._headers = auth_headers(options.api_key) | {
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",
        }
        self._model = model
        self._seed = seed

    async def send(self, index: int, prompt: Prompt, origin: float, scheduled: float | None) -> RequestResult:
        """Sends a request and reads its answer to the end; a failure is part of the result.

        Args:
            origin: ``time.perf_counter()`` at the start of the run.
            scheduled: when it should have been sent, in seconds from there.
        """
        body = msgspec.json.encode(self.body(index, prompt))
        started = time.perf_counter()
        result = RequestResult(index=index, scheduled=scheduled, started=started - origin)
        try:
            async with asyncio.timeout(self._options.timeout):
                (await self._ask(body)).write(result, started)
        except (TimeoutError, httpx.TimeoutException):
            _fail(result, "timeout", f"no end within {self._options.timeout:g} s")
        except httpx.ConnectError as e:
            _fail(result, "connect", describe_exception(e))
        except (httpx.HTTPError, httpx.InvalidURL) as e:
            _fail(result, "disconnected", describe_exception(e))
        except msgspec.DecodeError as e:
            _fail(result, "bad_response", describe_exception(e))
        except _RequestError as e:
            _fail(result, e.kind, str(e))
            result.retry_after = e.retry_after
        result.e2el = time.perf_counter() - started
        return result

    def body(self, index: int, prompt: Prompt) -> dict[str, Any]:
        """The JSON of a request."""
        options = self._options
        body: dict[str, Any] = {
            "model": self._model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": prompt.max_tokens or options.output_len[0],
            "temperature": options.temperature,
        }
        if options.temperature > 0:
            body["seed"] = self._seed + index
        if options.ignore_eos or (options.ignore_eos is None and options.prompts is None):
            body["ignore_eos"] = True
        if options.endpoint == "chat":
            body["messages"] = [{"role": "user", "content": prompt.content}]
        else:
            body["prompt"] = prompt.content
        return body | options.extra_body

    async def _ask(self, body: bytes) -> _Answer:
        answer = _Answer()
        async with self._http.stream("POST", self._url, content=body, headers=self._headers) as response:
            if response.status_code != httpx.codes.OK:
                content = await response.aread()
                retry_after = _seconds(response.headers.get("Retry-After", ""))
                raise _RequestError(f"http_{response.status_code}", describe_body(content), retry_after)
            async for piece in response.aiter_bytes():
                answer.feed(piece, time.perf_counter())
        return answer


def _seconds(retry_after: str) -> float | None:
    """Seconds of a ``Retry-After`` header; None without one, and for a date, which only proxies send."""
    return float(retry_after) if retry_after.isdecimal() else None


def _fail(result: RequestResult, kind: str, message: str) -> None:
    result.error = kind
    result.message = message
