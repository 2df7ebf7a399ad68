"""Probes: ``/livez``, ``/readyz``, ``/startupz`` and the aliases ``/health`` and ``/ping``. Never behind auth."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter
from starlette.responses import Response

from app.api.json import json_response
from app.api.native.schemas.health import Health
from app.api.openapi import probe_answers
from app.api.service import Service
from app.serving.engine_client import EngineState
from app.serving.served import ModelState

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
        """Fails when only a restart helps: no engine any more, or one that stalled and could not be replaced."""
        for served in service.models:
            if served.state is ModelState.FAILED:
                return _health(service, served.client.readiness()[1])
            limit = served.stall_limit()
            if limit and (age := served.progress_age()) > limit + _HEALING_SECONDS:
                return _health(service, f"the engine has made no step for {age:.0f} s")
        return _health(service, None)

    @probe("/startupz", "Start-up")
    async def startupz() -> Response:
        """Fails until the model has been loaded once."""
        for served in service.models:
            if served.client.ready is None:
                return _health(service, served.client.readiness()[1])
        return _health(service, None)

    @probe("/readyz", "Readiness")
    @probe("/health", "Readiness (alias)")
    @probe("/ping", "Readiness (alias)")
    async def readyz() -> Response:
        """Fails while the model loads, while the server drains and without an engine. A full queue does not count."""
        if service.draining:
            return _health(service, "the server is shutting down")
        for served in service.models:
            ok, reason = served.client.readiness()
            if not ok:
                return _health(service, reason)
        return _health(service, None)

    return routes


def _health(service: Service, failure: str | None) -> Response:
    states = [served.client.state for served in service.models]
    state = next((state for state in states if state is not EngineState.READY), EngineState.READY)
    if service.draining and state is EngineState.READY:
        state = EngineState.DRAINING
    health = Health(status="ok" if failure is None else "unavailable", state=state.value, reason=failure)
    return json_response(health, 200 if failure is None else 503, {"cache-control": "no-store"})
