"""The generations of one HTTP request: submitted together, read together, ended together."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from app.api.auth import owner, tenant_salt
from app.api.service import Service
from app.serving.generation import Completion, Generation
from app.serving.served import Served
from app.serving.types import ChoiceDelta, GenerationRequest

T = TypeVar("T")
OnDelta = Callable[[int, ChoiceDelta], Awaitable[None]]


@contextlib.asynccontextmanager
async def submitted(
    service: Service,
    served: Served,
    requests: Sequence[GenerationRequest],
    *,
    request_id: str,
    endpoint: str,
    stream: bool,
) -> AsyncIterator[list[Generation]]:
    """Submits one generation a prompt; leaving the block aborts whatever has not finished, however it is left.

    Args:
        served: the model that is asked.
        request_id: of the HTTP request, under which it can be asked for and cancelled meanwhile.
        endpoint: the route's template.

    Raises:
        RequestError: one was refused; none is left running.
    """
    async with contextlib.AsyncExitStack() as stack:
        generations = []
        for request in requests:
            salted = dataclasses.replace(request, cache_salt=tenant_salt(request.cache_salt))
            generation = await served.generator.submit(salted, endpoint=endpoint, stream=stream)
            generations.append(await stack.enter_async_context(generation))
        async with service.live.track(request_id, generations, owner=owner()):
            yield generations


async def read_deltas(generations: Sequence[Generation], on_delta: OnDelta) -> None:
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


async def read_whole(generations: Sequence[Generation]) -> list[list[Completion]]:
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
