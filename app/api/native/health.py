"""Probes: ``/livez``, ``/readyz``, ``/startupz`` and the aliases ``/health`` and ``/ping``. Never behind auth."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter
from msgspec import UNSET
from starlette.responses import Response

from app.api.json import json_response
from app.api.native.schemas.health import Health, ModelHealth
from app.api.openapi import probe_answers
from app.api.service import Service
from app.serving.engine_client import EngineState
from app.serving.resident import Resident
from app.serving.states import ModelState

Probe = Callable[[], Awaitable[Response]]
_HEALING_SECONDS = 30.0
"""Seconds that the supervisor has to end an engine that stalled."""


def router(service: Service) -> APIRouter:
    """The routes, over one service."""
    routes = APIRouter(tags=["Probes"], responses=probe_answers(Health))

    def probe(path: str, summary: str) -> Callable[[Probe], Probe]:
        def add(endpoint: Probe) -> Probe:
            routes.add_api_route(path, endpoint, methods=["GET"], summary=summary)
            return endpoint

        return add

    @probe("/livez", "Liveness")
    async def livez() -> Response:
        """Fails when only a restart helps: no engine any more, or one that stalled and could not be replaced.

        Where models come and go, one that failed is tried again, and does not count.
        """
        for served in service.models:
            if served.state is ModelState.FAILED and served.resident is None:
                return _health(service, served.client.readiness()[1])
            limit = served.stall_limit()
            if limit and (age := served.progress_age()) > limit + _HEALING_SECONDS:
                return _health(service, f"the engine has made no step for {age:.0f} s")
        return _health(service, None)

    @probe("/startupz", "Start-up")
    async def startupz() -> Response:
        """Fails until the model has been loaded once; where models come and go, until those loaded at the start have
        been, or failed."""
        for served in service.models:
            if served.client.ready is None and (served.resident is None or served.resident.is_preloading):
                return _health(service, served.client.readiness()[1])
        return _health(service, None)

    @probe("/readyz", "Readiness")
    @probe("/health", "Readiness (alias)")
    @probe("/ping", "Readiness (alias)")
    async def readyz() -> Response:
        """Fails while the model loads, while the server drains and without an engine. A full queue does not count.

        Where models come and go, requests wait for theirs: only those loaded at the start count, the first time.
        """
        if service.draining:
            return _health(service, "the server is shutting down")
        for served in service.models:
            if served.resident is None:
                ok, reason = served.client.readiness()
            else:
                ok, reason = not served.resident.is_preloading, served.resident.life.reason
            if not ok:
                return _health(service, reason)
        return _health(service, None)

    return routes


def _health(service: Service, failure: str | None) -> Response:
    if service.models.come_and_go:
        state = EngineState.READY if failure is None else EngineState.LOADING
    else:
        states = [served.client.state for served in service.models]
        state = next((state for state in states if state is not EngineState.READY), EngineState.READY)
    if service.draining and state is EngineState.READY:
        state = EngineState.DRAINING
    health = Health(
        status="ok" if failure is None else "unavailable",
        state=state.value,
        reason=failure,
        models=[_model(served.resident) for served in service.models if served.resident is not None] or UNSET,
    )
    return json_response(health, 200 if failure is None else 503, {"cache-control": "no-store"})


def _model(resident: Resident) -> ModelHealth:
    progress = resident.life.how_far
    return ModelHealth(
        id=resident.name,
        state=resident.life.state.value,
        reason=resident.life.reason or UNSET,
        done=UNSET if progress is None else progress.done,
        total=UNSET if progress is None else progress.total,
    )
