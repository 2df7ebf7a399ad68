"""``GET /v1/models``."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from app.api.json import json_response
from app.api.openai.openapi import answers
from app.api.openai.schemas.models import ModelCard, ModelList, ModelProgress
from app.api.service import Service
from app.serving.resident import Resident

OWNER = "tuili"
_MODEL_IN_PATH = {"parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]}


def router(service: Service) -> APIRouter:
    """The routes, over one service."""
    routes = APIRouter(tags=["OpenAI"])

    @routes.get("/v1/models", summary="Names of the served model", responses=answers(ModelList, errors=()))
    async def list_models() -> Response:
        """Every name under which clients may ask for the model."""
        return _listed(service)

    @routes.get(
        "/v1/models/{model:path}", summary="One served name", responses=answers(ModelCard), openapi_extra=_MODEL_IN_PATH
    )
    async def retrieve_model(request: Request) -> Response:
        """What is known of one name; 404 `model_not_found` for others. The list, where no name follows the slash."""
        name: str = request.path_params["model"]
        return json_response(_card(service, name)) if name else _listed(service)

    return routes


def _listed(service: Service) -> Response:
    return json_response(ModelList(data=[_card(service, name) for name in service.models.names]))


def _card(service: Service, name: str) -> ModelCard:
    served = service.models.resolve(name)
    ready, generator = served.client.ready, served.known_generator
    card = ModelCard(
        id=name,
        created=served.created,
        owned_by=OWNER,
        root=served.name,
        parent=served.name if served.adapter else None,
        max_model_len=None if ready is None else ready.info.max_model_len,
        default_sampling={} if generator is None else generator.default_params,
        via=None if ready is None else ready.info.via,
    )
    return card if served.resident is None else _with_state(card, served.resident)


def _with_state(card: ModelCard, resident: Resident) -> ModelCard:
    life = resident.life
    far = life.how_far
    return msgspec.structs.replace(
        card,
        state=life.state.value,
        reason=life.reason or UNSET,
        progress=UNSET if far is None else ModelProgress(phase=far.phase, done=far.done, total=far.total or None),
    )
