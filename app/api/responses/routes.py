"""``/v1/responses/{id}``: kept responses, what they were asked with, and the end of those under way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from app.answers.database import AnswersError
from app.api.body import read_body
from app.api.caller import owner
from app.api.extras import ignored_fields, ignored_header, is_strict
from app.api.json import json_response
from app.api.openapi import takes
from app.api.responses.create import CREATE, kept_items, read_response
from app.api.responses.errors import not_found, unavailable
from app.api.responses.items import KeptItem
from app.api.responses.openapi import answers
from app.api.responses.schemas.answer import DeletedResponse, InputTokens, ItemList, ResponseObject
from app.api.responses.schemas.body import ResponsesBody
from app.api.scope import deadline
from app.api.service import Service
from app.errors import RequestError

TAG = "Responses"
_PATH = CREATE.path + "/{response_id}"
_INPUT_TOKENS = CREATE.path + "/input_tokens"
_PAGE, _MAX_PAGE = 20, 100
_NO_STORE = {"cache-control": "no-store"}


def _parameter(name: str, schema: dict[str, Any], place: str = "query") -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


_ID = _parameter("response_id", {"type": "string"}, "path")
_OF_ID = {"parameters": [_ID]}
_PAGING = {
    "parameters": [
        _ID,
        _parameter("limit", {"type": "integer", "minimum": 1, "maximum": _MAX_PAGE, "default": _PAGE}),
        _parameter("order", {"enum": ["asc", "desc"], "default": "desc"}),
        _parameter("after", {"type": "string"}),
    ]
}


def router(service: Service) -> APIRouter:
    """The routes, over one service."""
    routes = APIRouter(tags=[TAG])

    @routes.get(_PATH, summary="A kept response", responses=answers(ResponseObject), openapi_extra=_OF_ID)
    async def get_response(request: Request) -> Response:
        """The response as it was answered; one that is still being streamed as far as it has come."""
        if request.query_params.get("stream") in ("true", "1"):
            message = "stream is not supported here: only the answer to the request that made it is a stream."
            raise RequestError(message, code="unsupported_parameter", param="stream")
        return _shown(await _find(service, request.path_params["response_id"]))

    @routes.delete(_PATH, summary="Delete a kept response", responses=answers(DeletedResponse), openapi_extra=_OF_ID)
    async def delete_response(request: Request) -> Response:
        """Nobody finds it any more. What was said in it goes with the last response that goes on from it."""
        response_id: str = request.path_params["response_id"]
        try:
            was_there = await service.answers.delete(response_id, owner())
        except AnswersError as error:
            raise unavailable(error) from None
        if not was_there:
            raise not_found(response_id)
        return json_response(DeletedResponse(id=response_id))

    @routes.get(
        _PATH + "/input_items",
        summary="What a kept response was made from",
        responses=answers(ItemList),
        openapi_extra=_PAGING,
    )
    async def list_input_items(request: Request) -> Response:
        """The items before a response, those of the responses that it goes on from included; the newest first."""
        response_id: str = request.path_params["response_id"]
        items = await kept_items(service.answers, response_id, with_answer=False)
        if items is None:
            raise not_found(response_id)
        return json_response(_page(items, request.query_params), headers=_NO_STORE)

    @routes.post(_PATH + "/cancel", summary="End a response", responses=answers(ResponseObject), openapi_extra=_OF_ID)
    async def cancel_response(request: Request) -> Response:
        """Ends a response that is still being streamed, and frees what it holds; one that has ended stays as it is.

        The answer is the response as far as it came. Its own client gets the error `request_cancelled`.
        """
        response_id: str = request.path_params["response_id"]
        body = service.answers.under_way(response_id, owner())
        if body is None or service.live.cancel(response_id, owner=owner()) is None:
            return _shown(await _find(service, response_id))
        return _shown(msgspec.json.encode(msgspec.json.decode(body) | {"status": "cancelled"}))

    @routes.post(
        _INPUT_TOKENS,
        summary="Count a request's tokens",
        responses=answers(InputTokens),
        openapi_extra=takes(ResponsesBody, {}),
    )
    async def count_input_tokens(request: Request) -> Response:
        """Tokens that a request would be read as, those of the responses that it goes on from included."""
        body = await read_body(request, ResponsesBody)
        ignored = ignored_fields(body, strict=is_strict(request, default=service.settings.strict_params))
        read = await read_response(body, service)
        served = service.models.resolve(read.model)
        ends = deadline(request.scope, read.timeout, service.settings.default_timeout)
        async with served.in_use(ends, endpoint=_INPUT_TOKENS):
            generator = served.generator
            read.task.check(service.settings)
            prompts = await read.task.encode(generator, ends)
        tokens = InputTokens(input_tokens=sum(len(prompt.token_ids) for prompt in prompts))
        return json_response(tokens, headers=ignored_header([*ignored, *read.unheeded]))

    @routes.post(CREATE.path + "/compact", include_in_schema=False)
    async def compact() -> Response:
        raise RequestError("Conversations are not compacted here.", status=404, code="unknown_url")

    return routes


def _shown(body: bytes) -> Response:
    return Response(body, 200, _NO_STORE, "application/json")


async def _find(service: Service, response_id: str) -> bytes:
    """JSON of a response, kept or under way. Raises :class:`RequestError` 404, 503."""
    body = service.answers.under_way(response_id, owner())
    if body is not None:
        return body
    try:
        answer = await service.answers.get(response_id, owner())
    except AnswersError as error:
        raise unavailable(error) from None
    if answer is None:
        raise not_found(response_id)
    return answer.body


def _page(items: Sequence[KeptItem], query: QueryParams) -> ItemList:
    """The items that a query asks for. Raises :class:`RequestError` 400."""
    limit = query.get("limit", str(_PAGE))
    if not limit.isdecimal() or not limit.isascii() or len(limit) > 4 or not 1 <= int(limit) <= _MAX_PAGE:
        raise RequestError(f"limit is a number from 1 to {_MAX_PAGE}.", code="invalid_value", param="limit")
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise RequestError("order is asc or desc.", code="invalid_value", param="order")
    ordered = list(items) if order == "asc" else list(reversed(items))
    start = 0
    if (after := query.get("after")) is not None:
        places = [place for place, item in enumerate(ordered) if item["id"] == after]
        if not places:
            raise RequestError("after is the id of no item of this response.", code="invalid_value", param="after")
        start = places[0] + 1
    page = ordered[start : start + int(limit)]
    return ItemList(
        data=page,
        first_id=page[0]["id"] if page else None,
        last_id=page[-1]["id"] if page else None,
        has_more=start + len(page) < len(ordered),
    )
