"""``/v1/engine``: what an engine does at this moment, once or every second. Costs it nothing while nobody asks."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from app.api.caller import caller, owner
from app.api.disconnect import UntilDisconnect
from app.api.json import encode, json_response
from app.api.native.schemas.engine import (
    BlockCounts,
    EngineInfo,
    EngineTotals,
    EngineView,
    OthersView,
    RequestView,
)
from app.api.openai.openapi import answers
from app.api.openai.schemas.errors import ErrorResponse
from app.api.openapi import documented_answers
from app.api.scope import deadline
from app.api.service import Service
from app.api.sse import DATA_EVENT, EventStream
from app.contract.frames import Holding, Holdings
from app.errors import RequestError
from app.keys import KeyScope
from app.serving.engine_client import EngineState
from app.serving.live_requests import UnderWay
from app.serving.served import Served

MAX_WATCHERS = 32
"""Live views at one time; more are answered 429."""
INTERVAL = 1.0
"""Seconds between two views."""
_NO_STORE = {"cache-control": "no-store"}
_LIVE_ERRORS = {404: "There is no such model.", 429: f"{MAX_WATCHERS} clients watch already."}
_MODEL = {
    "parameters": [
        {
            "name": "model",
            "in": "query",
            "description": "Name of a served model; the first one when absent.",
            "schema": {"type": "string"},
        }
    ]
}


def router(service: Service) -> APIRouter:
    """The routes, over one service."""
    routes = APIRouter(tags=["Operations"])
    watchers = 0

    @routes.get(
        "/v1/engine", summary="What the engine does", openapi_extra=_MODEL, responses=answers(EngineView, errors=(404,))
    )
    async def engine(request: Request) -> Response:
        """Batch, KV blocks by owner, prefix cache and totals, now."""
        served = service.models.resolve(request.query_params.get("model"))
        return json_response(await _view(service, served), headers=_NO_STORE)

    @routes.get(
        "/v1/engine/live",
        summary="What the engine does, every second",
        openapi_extra=_MODEL,
        responses=documented_answers(ErrorResponse, _LIVE_ERRORS, whole=None, event=EngineView),
    )
    async def live(request: Request) -> Response:
        """The same as server-sent events, until the client leaves, the server drains or the time of a request is up."""
        served = service.models.resolve(request.query_params.get("model"))

        async def send_views(send: Send) -> None:
            nonlocal watchers
            if watchers >= MAX_WATCHERS:
                raise _too_many_watchers()
            watchers += 1
            try:
                events = EventStream(send, _NO_STORE)
                ends = deadline(request.scope, None, service.settings.default_timeout) or math.inf
                while not _is_over(service, served) and time.monotonic() < ends:
                    await events.send(DATA_EVENT % encode(await _view(service, served)))
                    await asyncio.sleep(INTERVAL)
                await events.end()
            finally:
                watchers -= 1

        return UntilDisconnect(send_views)

    return routes


def _is_over(service: Service, served: Served) -> bool:
    return service.draining or served.client.state is EngineState.DRAINING


def _too_many_watchers() -> RequestError:
    return RequestError(
        f"{MAX_WATCHERS} clients watch the engine already.",
        status=429,
        type="overloaded_error",
        code="overloaded",
        retry_after=10.0,
    )


async def _view(service: Service, served: Served) -> EngineView:
    client = served.client
    has_engine = client.ready is not None and client.state in (EngineState.READY, EngineState.DRAINING)
    holdings = await client.surveys.ask() if has_engine and not client.loading else None
    stats = client.stats
    under_way = [each for each in service.live.under_way() if each.model == served.name]
    listed, hidden = _divided(under_way)
    held = {} if holdings is None else {each.request_id: each for each in holdings.sequences}
    return EngineView(
        model=served.name,
        state=client.state.value,
        time=time.monotonic(),
        running=stats.num_running,
        waiting=stats.num_waiting,
        kv=_blocks(served, holdings),
        requests=[_request(each, held) for each in listed],
        others=_others(hidden, held) if _sees_only_own() else None,
        totals=EngineTotals(
            steps=stats.steps_total,
            prompt_tokens=stats.prompt_tokens_total,
            generation_tokens=stats.generation_tokens_total,
            prefix_query_tokens=stats.prefix_query_tokens_total,
            prefix_hit_tokens=stats.prefix_hit_tokens_total,
            preemptions=stats.preemptions_total,
            draft_tokens=stats.draft_tokens_total,
            accepted_draft_tokens=stats.accepted_draft_tokens_total,
        ),
        info=_info(served),
    )


def _sees_only_own() -> bool:
    key = caller()
    return key is not None and not key.allows(KeyScope.ADMIN)


def _divided(under_way: Iterable[UnderWay]) -> tuple[list[UnderWay], list[UnderWay]]:
    """The requests that the caller may see one by one, and the others."""
    listed: list[UnderWay] = []
    hidden: list[UnderWay] = []
    for each in under_way:
        (hidden if _sees_only_own() and each.owner != owner() else listed).append(each)
    return listed, hidden


def _blocks(served: Served, holdings: Holdings | None) -> BlockCounts:
    client, ready = served.client, served.client.ready
    block_size = 0 if ready is None else ready.info.kv_cache.block_size
    if holdings is None:
        stats = client.stats
        return BlockCounts(block_size=block_size, total=stats.blocks_total, held=stats.blocks_used, cached=0)
    return BlockCounts(block_size=block_size, total=holdings.total, held=holdings.held, cached=holdings.cached)


def _request(request: UnderWay, held: dict[str, Holding]) -> RequestView:
    state = request.state
    blocks = [held[each] for each in request.sequence_ids if each in held]
    return RequestView(
        number=request.number,
        yours=caller() is not None and request.owner == owner(),
        status=state.status.value,
        seconds=state.seconds,
        prompt_tokens=state.prompt_tokens,
        cached_tokens=state.cached_tokens,
        generated_tokens=state.generated_tokens,
        blocks=sum(each.blocks for each in blocks),
        shared_blocks=sum(each.shared_blocks for each in blocks),
    )


def _others(hidden: Iterable[UnderWay], held: dict[str, Holding]) -> OthersView:
    requests = [_request(each, held) for each in hidden]
    return OthersView(requests=len(requests), blocks=sum(each.blocks - each.shared_blocks for each in requests))


def _info(served: Served) -> EngineInfo | None:
    if served.client.ready is None:
        return None
    info = served.client.ready.info
    return EngineInfo(
        max_model_len=info.max_model_len,
        weights=info.dtype if info.quantization == "none" else info.quantization,
        kv_cache_dtype=info.kv_cache_dtype,
        kernels=info.kernels,
        device=info.device,
    )
