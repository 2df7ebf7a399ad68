"""``POST /v1/load_lora_adapter`` and ``/v1/unload_lora_adapter``, as vLLM has them: adapters come and go while requests
run."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from app.api.body import read_body
from app.api.extras import ignored_fields, ignored_header, is_strict
from app.api.native.schemas.adapters import LoadAdapterBody, UnloadAdapterBody
from app.api.openai.schemas.errors import ErrorResponse
from app.api.openapi import GENERATE_ERRORS, documented_answers, takes
from app.api.service import Service
from app.errors import RequestError
from app.serving.served import Served

_LOAD_EXAMPLES = {
    "directory": {"summary": "A directory", "value": {"lora_name": "support", "lora_path": "/adapters/support"}}
}
_UNLOAD_EXAMPLES = {"name": {"summary": "A name", "value": {"lora_name": "support"}}}
_ERRORS = {status: GENERATE_ERRORS[status] for status in (403, 404, 413, 415, 500, 503)} | {
    400: "The adapter cannot be served, or a field is wrong; the message says which.",
    404: "There is no such model or adapter.",
    409: "The name is taken, or the adapter is being loaded or unloaded.",
}
_ANSWERS = documented_answers(ErrorResponse, dict(sorted(_ERRORS.items())), whole=None)


def router(service: Service) -> APIRouter:
    """The routes, over one service."""
    routes = APIRouter(tags=["Adapters"])

    @routes.post(
        "/v1/load_lora_adapter",
        summary="Load an adapter",
        response_class=PlainTextResponse,
        responses=_ANSWERS,
        openapi_extra=takes(LoadAdapterBody, _LOAD_EXAMPLES),
    )
    async def load_adapter(request: Request) -> Response:
        """Loads an adapter (LoRA, as PEFT writes it) from the server's disk; requests name it as their `model`.

        Requests that run are not disturbed. There is room for as many as `--max-adapters` says.
        """
        body = await read_body(request, LoadAdapterBody)
        ignored = _ignored(service, request, body)
        served = _base(service, body.base_model_name)
        if body.lora_name in service.models.names:
            message = f"{body.lora_name!r} is served already."
            raise RequestError(message, status=409, code="adapter_exists", param="lora_name")
        served.client.check_available()
        await served.client.adapters.load(body.lora_name, _absolute(body.lora_path))
        text = f"Success: LoRA adapter {body.lora_name!r} is loaded.\n"
        return PlainTextResponse(text, headers=ignored_header(ignored))

    @routes.post(
        "/v1/unload_lora_adapter",
        summary="Unload an adapter",
        response_class=PlainTextResponse,
        responses=_ANSWERS,
        openapi_extra=takes(UnloadAdapterBody, _UNLOAD_EXAMPLES),
    )
    async def unload_adapter(request: Request) -> Response:
        """Takes no more requests for an adapter. Those that run end as they would; then its room is free."""
        body = await read_body(request, UnloadAdapterBody)
        ignored = _ignored(service, request, body)
        served = _base(service, body.base_model_name)
        served.client.check_available()
        await served.client.adapters.unload(body.lora_name)
        text = f"Success: LoRA adapter {body.lora_name!r} is unloaded.\n"
        return PlainTextResponse(text, headers=ignored_header(ignored))

    return routes


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def _base(service: Service, name: str | None) -> Served:
    """The model that an adapter is for."""
    served = service.models.resolve(name)
    if served.adapter:
        message = f"{served.adapter!r} is an adapter itself."
        raise RequestError(message, code="invalid_value", param="base_model_name")
    return served


def _ignored(service: Service, request: Request, body: LoadAdapterBody | UnloadAdapterBody) -> list[str]:
    strict = is_strict(request, default=service.settings.strict_params)
    return ignored_fields(body, strict=strict, generates=False)
