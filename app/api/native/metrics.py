"""``GET /metrics``."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from app.api.service import Service


def router(service: Service) -> APIRouter:
    """The route, over one service."""
    routes = APIRouter(tags=["Operations"])

    @routes.get(
        "/metrics",
        summary="Prometheus metrics",
        responses={200: {"description": "Own names and the `vllm:` names.", "content": {"text/plain": {}}}},
    )
    async def metrics() -> Response:
        """What Prometheus scrapes."""
        page, content_type = service.metrics.render()
        return Response(page, headers={"content-type": content_type})

    return routes
