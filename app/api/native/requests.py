"""``/v1/requests/{id}``: what a request is doing, and its cancellation."""

from __future__ import annotations

import re
from typing import Protocol

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.api.caller import caller, owner
from app.api.json import json_response
from app.api.native.schemas.live import LiveRequest, RequestSeconds
from app.api.openai.openapi import answers
from app.api.service import Service
from app.errors import RequestError
from app.keys import KeyScope
from app.serving.live_requests import RequestState

_PATH = "/v1/requests/{request_id:path}"
_ID_IN_PATH = {"parameters": [{"name": "request_id", "in": "path", "required": True, "schema": {"type": "string"}}]}
_ANSWER_ID = re.compile(r"(?:chatcmpl-|cmpl-|msg_)(.+)", re.DOTALL)
_MAX_SHOWN = 128
_NO_STORE = {"cache-control": "no-store"}


class LookUp(Protocol):
    """Finds a request, and may do something to it."""

    def __call__(self, request_id: str, /, *, owner: str) -> RequestState | None:
        """None when there is none."""


def router(service: Service) -> APIRouter:
    """The routes, over one service."""
    routes = APIRouter(tags=["Requests"], responses=answers(LiveRequest))

    @routes.get(_PATH, summary="State of a request", openapi_extra=_ID_IN_PATH)
    async def get_request(request: Request) -> Response:
        """What a request is doing, by its `X-Request-Id` or the id of its answer (`chatcmpl-…`, `cmpl-…`, `msg_…`).

        The last few hundred that ended are remembered. Of several with the same id, the latest. Only keys
        with scope `admin` find requests of other keys.
        """
        return _answer(service, service.live.find, request)

    @routes.delete(_PATH, summary="Cancel a request", openapi_extra=_ID_IN_PATH)
    async def cancel_request(request: Request) -> Response:
        """Ends a request and frees what it holds; the answer is its state.

        Its own client gets the error `request_cancelled`: as the last event of a stream, else with status 499. A
        request that ended already stays as it is. Several with the same id are cancelled together.
        """
        return _answer(service, service.live.cancel, request)

    return routes


def _answer(service: Service, look_up: LookUp, request: Request) -> Response:
    given: str = request.path_params["request_id"]
    answer_id = _ANSWER_ID.fullmatch(given)
    for request_id in (given, answer_id[1]) if answer_id else (given,):
        for each in _visible_owners(service, request_id):
            if (state := look_up(request_id, owner=each)) is not None:
                return json_response(_live_request(state), headers=_NO_STORE)
    message = f"There is no request {given[:_MAX_SHOWN]!r}, or it ended too long ago."
    raise RequestError(message, status=404, code="request_not_found")


def _visible_owners(service: Service, request_id: str) -> list[str]:
    """Whose requests the caller may see: its own, or with scope admin everybody's, its own first."""
    key = caller()
    everybody = key is not None and key.allows(KeyScope.ADMIN)
    return [owner(), *service.live.owners(request_id)] if everybody else [owner()]


def _live_request(state: RequestState) -> LiveRequest:
    queue, prefill, decode = state.phases
    return LiveRequest(
        id=state.request_id,
        endpoint=state.endpoint,
        stream=state.stream,
        status=state.status.value,
        created=int(state.created),
        prompts=state.prompts,
        choices=state.choices,
        prompt_tokens=state.prompt_tokens,
        cached_tokens=state.cached_tokens,
        completion_tokens=state.completion_tokens,
        generated_tokens=state.generated_tokens,
        seconds=RequestSeconds(total=state.seconds, queue=queue, prefill=prefill, decode=decode),
        finish_reasons=[reason.value for reason in state.finish_reasons],
        error_code=state.error_code,
    )
