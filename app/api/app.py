"""The HTTP application."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from app.api import exchange
from app.api.auth import OPEN_PATHS, AuthMiddleware, needs
from app.api.errors import install_error_handlers
from app.api.heads import HeadMiddleware
from app.api.middleware import (
    BodyLimitMiddleware,
    FaultMiddleware,
    HttpMetricsMiddleware,
    RequestIdMiddleware,
    VersionMiddleware,
)
from app.api.native import adapters, engine, health, metrics, requests, tokenize
from app.api.native.schemas.adapters import LoadAdapterBody, UnloadAdapterBody
from app.api.native.schemas.engine import EngineView
from app.api.native.schemas.health import Health
from app.api.native.schemas.live import LiveRequest
from app.api.native.schemas.tokenize import DetokenizeBody, Detokenized, TokenizeBody, Tokenized, TokenizerInfo
from app.api.openapi import install_openapi
from app.api.origins import OriginMiddleware
from app.api.page import routes as page
from app.api.protocols import PROTOCOLS, protocol_of
from app.api.service import Service
from app.keys import KeyScope
from app.version import __version__

_DESCRIPTION = """\
A model server for one box, with the OpenAI API.

What a request asks for is honoured, refused with an error that names the field, or, where nobody knows the field, named
back in `X-Ignored-Params`. Every answer carries `X-Request-Id`: the client's own, or one made for it.
"""


def create_app(service: Service) -> FastAPI:
    """The application over one service. Reads no environment and keeps no state but what ``service`` holds."""
    app = FastAPI(
        title="tuili",
        version=__version__,
        summary="An inference-optimised model server.",
        description=_DESCRIPTION,
        redirect_slashes=False,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        default_response_class=Response,
    )
    infer = [needs(KeyScope.INFER)]
    if service.settings.page:
        app.routes.extend(page.routes())
    for protocol in PROTOCOLS:
        app.include_router(exchange.router(protocol, service), dependencies=infer)
        app.include_router(protocol.routes(service), dependencies=infer)
    for room in (tokenize, requests, engine):
        app.include_router(room.router(service), dependencies=infer)
    app.include_router(metrics.router(service), dependencies=[needs(KeyScope.METRICS)])
    app.include_router(adapters.router(service), dependencies=[needs(KeyScope.ADMIN)])
    app.include_router(health.router(service))
    _document(app, keys=bool(service.settings.api_keys))
    install_error_handlers(app)
    # The last one added is the outermost.
    app.add_middleware(HeadMiddleware)
    app.add_middleware(
        BodyLimitMiddleware,
        max_bytes=service.settings.max_body_bytes,
        max_bytes_together=service.settings.max_body_bytes_together,
    )
    if service.settings.api_keys:
        is_open = page.is_page if service.settings.page else None
        app.add_middleware(AuthMiddleware, keys=service.settings.api_keys, is_open=is_open)
    else:
        settings = service.settings
        app.add_middleware(OriginMiddleware, hosts=settings.allowed_hosts, origins=settings.cors_origins)
    if service.settings.cors_origins:
        _allow_origins(app, service.settings.cors_origins)
    app.add_middleware(FaultMiddleware)
    app.add_middleware(VersionMiddleware)
    app.add_middleware(HttpMetricsMiddleware, metrics=service.metrics)
    app.add_middleware(RequestIdMiddleware)
    return app


def _document(app: FastAPI, *, keys: bool) -> None:
    endpoints = [endpoint for protocol in PROTOCOLS for endpoint in protocol.endpoints]
    others = [body for protocol in PROTOCOLS for body in protocol.bodies]
    answers = [answer for protocol in PROTOCOLS for answer in (*protocol.answers, protocol.error_schema)]
    install_openapi(
        app,
        bodies=[
            *dict.fromkeys(endpoint.schema for endpoint in endpoints),
            *others,
            TokenizeBody,
            DetokenizeBody,
            LoadAdapterBody,
            UnloadAdapterBody,
        ],
        answers=[*answers, Tokenized, Detokenized, TokenizerInfo, LiveRequest, EngineView, Health],
        error_schema=lambda path: protocol_of(path).error_schema,
        open_paths=OPEN_PATHS if keys else None,
    )


def _allow_origins(app: FastAPI, origins: Sequence[str]) -> None:
    """Lets pages of ``origins`` read answers. Outside the key check: browsers send no key ahead of a request."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "x-ignored-params", "server-timing", "retry-after"],
    )
