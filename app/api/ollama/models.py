"""``/api/tags``, ``/api/show``, ``/api/ps``, ``/api/version``, and what is refused until there is a task for it."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from app.api.body import read_body
from app.api.extras import ignored_fields, ignored_header, is_strict
from app.api.json import json_response
from app.api.ollama.openapi import ollama_answers
from app.api.ollama.schemas.answers import (
    OllamaDetails,
    OllamaModel,
    OllamaModels,
    OllamaProcesses,
    OllamaRunning,
    OllamaShown,
    OllamaVersion,
)
from app.api.ollama.schemas.bodies import OllamaShowBody
from app.api.openapi import takes
from app.api.service import Service
from app.duration import FOREVER
from app.errors import RequestError
from app.serving.generator import Generator
from app.serving.served import LATEST, Served
from app.version import __version__

TAG = "Ollama"
PROTOCOL_VERSION = "0.13.0"
"""Version of Ollama that has what is spoken here; clients look at it before they use something new."""
_FAMILY = "tuili"
"""Stands for the model's family, which the API process does not know."""
_FOREVER = "9999-12-31T23:59:59Z"
_FAR = 1e9
"""Seconds from which on that is said."""


def router(service: Service) -> APIRouter:
    """The routes, over one service."""
    routes = APIRouter(tags=[TAG])

    @routes.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def alive() -> Response:
        """What clients look for before they ask anything."""
        return PlainTextResponse("Ollama is running")

    @routes.get("/api/version", summary="Version of the protocol", responses=ollama_answers(OllamaVersion))
    async def version() -> Response:
        """The version of Ollama that has what is spoken here, and the server's own behind a plus sign."""
        return json_response(OllamaVersion(f"{PROTOCOL_VERSION}+tuili.{__version__}"))

    @routes.get("/api/tags", summary="Names of the served models", responses=ollama_answers(OllamaModels))
    async def tags() -> Response:
        """Every name under which clients may ask for a model."""
        return json_response(
            OllamaModels([_model(service.models.resolve(name), name) for name in service.models.names])
        )

    @routes.get("/api/ps", summary="Models that are loaded", responses=ollama_answers(OllamaProcesses))
    async def processes() -> Response:
        """Those of the served models whose engines are up."""
        loaded = [served for served in service.models if served.client.ready is not None and served.is_loaded]
        return json_response(OllamaProcesses([_running(served) for served in loaded]))

    @routes.post(
        "/api/show",
        summary="What is known of a model",
        openapi_extra=takes(OllamaShowBody, {}),
        responses=ollama_answers(OllamaShown, errors=(400, 404, 413, 503)),
    )
    async def show(request: Request) -> Response:
        """Its sizes, its chat template, how it samples and what it can do."""
        body = await read_body(request, OllamaShowBody)
        ignored = ignored_fields(body, strict=is_strict(request, default=service.settings.strict_params))
        served = service.models.resolve(body.model or body.name)
        if served.resident is not None:
            await served.resident.life.read_text_side()
        return json_response(_shown(served), headers=ignored_header(ignored))

    @routes.post("/api/embed", include_in_schema=False)
    @routes.post("/api/embeddings", include_in_schema=False)
    async def embed() -> Response:
        """Refuses."""
        raise RequestError("The model does not support embeddings.", code="unsupported_task")

    return routes


def _model(served: Served, name: str) -> OllamaModel:
    tagged = _tagged(name)
    return OllamaModel(
        name=tagged,
        model=tagged,
        modified_at=_time(served),
        size=_size(served),
        digest=_digest(served),
        details=_details(served),
    )


def _running(served: Served) -> OllamaRunning:
    name = _tagged(served.name)
    info = served.info()
    return OllamaRunning(
        name=name,
        model=name,
        size=_size(served),
        digest=_digest(served),
        details=_details(served),
        expires_at=_expiry(served),
        size_vram=0 if info.device == "cpu" else info.weight_bytes + info.kv_cache_bytes,
        context_length=served.generator.max_model_len,
    )


def _shown(served: Served) -> OllamaShown:
    """Raises :class:`RequestError` 503 while nothing is known of a model that stays."""
    facts = served.info() if served.resident is None or served.client.ready is not None else None
    generator = served.known_generator
    model_info: dict[str, Any] = {"general.architecture": _FAMILY}
    if facts is not None:
        model_info |= {
            "general.parameter_count": facts.num_parameters,
            f"{_FAMILY}.context_length": served.generator.max_model_len,
            f"{_FAMILY}.vocab_size": facts.vocab_size,
        }
    sampling = {} if generator is None else generator.default_params
    return OllamaShown(
        modelfile=f"FROM {served.name}\n",
        parameters="\n".join(f"{name} {value}" for name, value in sampling.items()),
        template="" if generator is None else generator.chat_template.source or "",
        details=_details(served),
        model_info=model_info,
        capabilities=["completion"] if generator is None else _capabilities(generator),
        modified_at=_time(served),
    )


def _capabilities(generator: Generator) -> list[str]:
    """What the model can do, in Ollama's words."""
    known = {"completion": True, "tools": True, "thinking": generator.reply_format.thinks}
    known["insert"] = generator.infill is not None
    return [name for name, can in known.items() if can]


def _details(served: Served) -> OllamaDetails:
    """What is known before the model is loaded: nothing."""
    if served.client.ready is None:
        return OllamaDetails()
    info = served.info()
    level = info.dtype if info.quantization == "none" else info.quantization
    return OllamaDetails(
        family=_FAMILY,
        families=[_FAMILY],
        parameter_size=_parameters(info.num_parameters),
        quantization_level=level,
    )


def _size(served: Served) -> int:
    return 0 if served.client.ready is None else served.info().weight_bytes


def _digest(served: Served) -> str:
    known = "" if served.client.ready is None else served.fingerprint()
    return hashlib.sha256(f"{served.name}|{known}".encode()).hexdigest()


def _parameters(count: int) -> str:
    """A number of parameters as model cards have it: 135M, 1.2B."""
    if count >= 10**9:
        return f"{count / 10**9:.1f}B"
    return f"{count / 10**6:.0f}M" if count >= 10**6 else f"{count / 10**3:.0f}K"


def _expiry(served: Served) -> str:
    """When a model goes, if nothing asks for it until then."""
    seconds = FOREVER if served.resident is None else served.resident.expires_in
    if seconds > _FAR:
        return _FOREVER
    return (datetime.now(UTC) + timedelta(seconds=max(0.0, seconds))).isoformat().replace("+00:00", "Z")


def _tagged(name: str) -> str:
    return name if ":" in name else name + LATEST


def _time(served: Served) -> str:
    return datetime.fromtimestamp(served.created, UTC).isoformat().replace("+00:00", "Z")
