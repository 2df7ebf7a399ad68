"""``POST /v1/messages/count_tokens``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.api.anthropic.conversation import read_conversation
from app.api.anthropic.openapi import message_answers
from app.api.anthropic.options import reply_options
from app.api.anthropic.schemas.answers import TokenCount
from app.api.anthropic.schemas.bodies import CountTokensBody
from app.api.body import read_body
from app.api.extras import ignored_fields, ignored_header, is_strict, unheeded
from app.api.json import json_response
from app.api.openapi import takes
from app.api.scope import deadline
from app.api.service import Service
from app.tasks.prompts import unread_variables
from app.tasks.reply import with_reply

PATH = "/v1/messages/count_tokens"
TAG = "Anthropic"
_MAX_TOKENS = 1 << 18
"""Most tokens that are counted, if the model's context has not more."""
_EXAMPLES: dict[str, Any] = {
    "question": {"summary": "One question", "value": {"messages": [{"role": "user", "content": "Why blue?"}]}}
}


def router(service: Service) -> APIRouter:
    """The route, over one service."""
    routes = APIRouter(tags=[TAG])

    @routes.post(
        PATH,
        summary="Number of tokens of a conversation",
        openapi_extra=takes(CountTokensBody, _EXAMPLES),
        responses=message_answers(TokenCount),
    )
    async def count_tokens(request: Request) -> Response:
        """What `/v1/messages` would have as input tokens, those from the prefix cache included."""
        body = await read_body(request, CountTokensBody)
        strict = is_strict(request, default=service.settings.strict_params)
        ignored = ignored_fields(body, strict=strict, generates=False)
        reply = reply_options(body)
        reply.check()
        served = service.models.resolve(body.model)
        ends = deadline(request.scope, None, service.settings.default_timeout)
        async with served.in_use(ends, endpoint=PATH):
            generator = served.generator
            prompt = with_reply(read_conversation(body), reply, generator)
            ignored += unheeded(unread_variables(prompt, generator), strict=strict)
            encoded = await prompt.encode(generator, max(_MAX_TOKENS, generator.max_model_len), ends)
        return json_response(TokenCount(len(encoded.token_ids)), headers=ignored_header(ignored))

    return routes
