"""What a workload asks: a server over HTTP, or an engine in a worker process."""

from __future__ import annotations

import asyncio
import itertools
import json
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from app.bench.client import Client, RequestResult
from app.bench.load import Load, LoadRun
from app.bench.options import Options
from app.bench.prompts import Prompt
from benchmarks.peers.process import Child, PeerError

Encode = Callable[[str], list[int]]
REQUEST_TIMEOUT = 300.0


class Target(Protocol):
    """Something that answers prompts."""

    def ask(self, prompts: Sequence[str], max_tokens: int, concurrency: int, prefix: int = 0) -> LoadRun:
        """Sends all prompts, so many at once, and waits for the last answer.

        Args:
            max_tokens: length of every answer, whatever the model would like.
            prefix: tokens that all prompts are known to begin with, 0 for none.

        Raises:
            PeerError: a request failed.
        """


@dataclass(frozen=True)
class HttpTarget:
    """A server that speaks OpenAI's completions, streamed."""

    url: str
    model: str
    ignore_eos: bool = True
    """Sent as a field of that name; a server that refuses unknown fields is told by ``extra_body``."""
    extra_body: Callable[[int], dict[str, Any]] = lambda _: {}
    """Further fields of a request, from the length of its answer."""

    def ask(self, prompts: Sequence[str], max_tokens: int, concurrency: int, prefix: int = 0) -> LoadRun:  # noqa: ARG002
        """See :meth:`Target.ask`; finding the prefix is the server's part."""
        run = asyncio.run(self._ask([Prompt(text, max_tokens) for text in prompts], max_tokens, concurrency))
        for result in run.results:
            if result.error is not None:
                raise PeerError(f"a request failed ({result.error}): {result.message}")
        return run

    async def _ask(self, prompts: Sequence[Prompt], max_tokens: int, concurrency: int) -> LoadRun:
        options = Options(
            url=self.url,
            ignore_eos=self.ignore_eos,
            extra_body=self.extra_body(max_tokens),
            timeout=REQUEST_TIMEOUT,
        )
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=None) as http:  # noqa: S113
            return await Load(Client(http, options, self.model, seed=0).send, prompts).closed(concurrency)


class WorkerTarget:
    """An engine in a worker (see :mod:`benchmarks.peers.workers`). It gets token ids: tokenising costs it nothing."""

    def __init__(self, child: Child, encode: Encode) -> None:
        self._child = child
        self._encode = encode

    def start(self, timeout: float) -> str:
        """Waits for the engine to be made; returns its version.

        Raises:
            PeerError: it failed, or took longer.
        """
        return str(self._read(timeout)["version"])

    def ask(self, prompts: Sequence[str], max_tokens: int, concurrency: int, prefix: int = 0) -> LoadRun:
        """See :meth:`Target.ask`."""
        ids = [self._encode(text) for text in prompts]
        stdin = self._child.process.stdin
        assert stdin is not None
        origin = time.perf_counter()
        request = {"prompts": ids, "max_tokens": max_tokens, "concurrency": concurrency, "prefix": prefix}
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        answer = self._read(REQUEST_TIMEOUT)
        results = [
            _result(index, start - origin, len(prompt), [time - origin for time in times])
            for index, (prompt, start, times) in enumerate(zip(ids, answer["started"], answer["times"], strict=True))
        ]
        end = max(result.started + result.e2el for result in results)
        return LoadRun(results, len(results), sum(result.output_tokens for result in results), end)

    def _read(self, timeout: float) -> dict[str, Any]:
        stdout = self._child.process.stdout
        assert stdout is not None
        # A worker writes whole lines, one an answer, so nothing is left in a buffer that select cannot see.
        if not select.select([stdout], [], [], timeout)[0]:
            raise PeerError(f"no answer within {timeout:g} s (log: {self._child.log})")
        line = stdout.readline()
        if not line:
            self._child.process.wait()
            self._child.check_alive()
        message: dict[str, Any] = json.loads(line)
        return message


def _result(index: int, started: float, prompt_tokens: int, times: Sequence[float]) -> RequestResult:
    if not times:
        raise PeerError("an answer without a token")
    return RequestResult(
        index=index,
        scheduled=None,
        started=started,
        ttft=times[0] - started,
        itl=[later - earlier for earlier, later in itertools.pairwise(times)],
        tpot=(times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None,
        e2el=times[-1] - started,
        input_tokens=prompt_tokens,
        output_tokens=len(times),
        output_chunks=len(times),
        has_usage=True,
    )
