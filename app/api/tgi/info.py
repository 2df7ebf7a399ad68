"""``GET /info``."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.api.json import json_response
from app.api.scope import deadline
from app.api.service import Service
from app.api.tgi.openapi import flat_answers
from app.api.tgi.schemas import Info
from app.version import __version__

TAG = "Generate"


def router(service: Service) -> APIRouter:
    """The route, over one service."""
    routes = APIRouter(tags=[TAG])

    @routes.get("/info", summary="Model and limits", responses=flat_answers(Info, errors=(503,)))
    async def info(request: Request) -> Response:
        """What a client of text-generation-inference asks before it sends anything."""
        ends = deadline(request.scope, None, service.settings.default_timeout)
        async with service.models.default.in_use(ends, endpoint="/info"):
            return json_response(_info(service))

    return routes


def _info(service: Service) -> Info:
    served = service.models.default
    facts = served.info()
    max_model_len = served.generator.max_model_len
    return Info(
        model_id=served.name,
        model_dtype=facts.dtype,
        model_device_type=facts.device,
        model_via=facts.via,
        max_concurrent_requests=served.generator.capacity,
        max_stop_sequences=service.settings.max_stop,
        max_input_tokens=max_model_len - 1,
        max_total_tokens=max_model_len,
        version=__version__,
    )
