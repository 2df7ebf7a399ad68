"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.api.body import read_body
from app.api.conversation import check_messages, encode_messages
from app.api.extras import ignored_fields, ignored_header
from app.api.middleware import request_id
from app.api.openai.answer import Answer, ChunkUsage, Head, deadline, generation_request, head, is_strict
from app.api.openai.logprobs import chat_logprobs
from app.api.openapi import answers, takes
from app.api.params import check_limits, check_logprobs, sampling_params
from app.api.schemas.chat import (
    AssistantMessage,
    ChatBody,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    Delta,
)
from app.api.schemas.usage import Usage
from app.api.service import Service
from app.errors import RequestError
from app.serving.generation import Completion, Generation
from app.serving.types import ChoiceDelta, TokenLogprob

ENDPOINT = "/v1/chat/completions"
_EXAMPLES = {
    "question": {
        "summary": "One question",
        "value": {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_completion_tokens": 64},
    },
    "stream": {
        "summary": "A stream with usage",
        "value": {
            "messages": [
                {"role": "system", "content": "Answer in one sentence."},
                {"role": "user", "content": "Name three rivers."},
            ],
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    },
}


def router(service: Service) -> APIRouter:
    """The route, over one service."""
    routes = APIRouter(tags=["OpenAI"])

    @routes.post(
        ENDPOINT,
        summary="Go on with a conversation",
        openapi_extra=takes(ChatBody, _EXAMPLES),
        responses=answers(ChatCompletion, ChatChunk),
    )
    async def create_chat_completion(request: Request) -> Response:
        """Answers the last message, whole or as a stream of chunks.

        Fields that nobody knows are named back in `X-Ignored-Params`; `?strict=true` refuses them.
        """
        body = await read_body(request, ChatBody)
        ignored = ignored_fields(body, strict=is_strict(request, service))
        served = service.models.resolve(body.model)
        num_top = _check(body, service)
        ends = deadline(request, body.timeout, service)
        answer_id = f"chatcmpl-{request_id(request.scope)}"
        with served.generator.reserved(answer_id, endpoint=ENDPOINT, n=body.n or 1):
            prompt = await encode_messages(body.messages, body, served.generator, ends)
        limit = body.max_completion_tokens or body.max_tokens
        params = sampling_params(
            body,
            served,
            # With no room at all, the text side refuses the prompt and says how long it is.
            max_tokens=limit or max(1, served.generator.remaining_tokens(len(prompt))),
            logprobs=num_top,
        )
        requests = [generation_request(answer_id, prompt, params, body, ends)]
        writer = ChatWriter(head(answer_id, served, body.model), with_logprobs=num_top is not None)
        return Answer(service, served, ENDPOINT, body, requests, writer, ignored_header(ignored)).response(request)

    return routes


def _check(body: ChatBody, service: Service) -> int | None:
    """Checks what spans several fields; returns the number of alternatives a token, None without logprobs."""
    check_limits(body, service.settings)
    check_logprobs("top_logprobs", body.top_logprobs, service.settings)
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs.", code="invalid_value", param="top_logprobs")
    check_messages(body.messages)
    return (body.top_logprobs or 0) if body.logprobs else None


class ChatWriter:
    """Writes one chat answer."""

    def __init__(self, answer_head: Head, *, with_logprobs: bool) -> None:
        self._head = answer_head
        self._with_logprobs = with_logprobs
        self._begun: set[int] = set()

    def chunks(self, _prompt: int, delta: ChoiceDelta, _generation: Generation, usage: ChunkUsage) -> list[ChatChunk]:
        """The role comes with the first text; what shows nothing makes no chunk."""
        if not (delta.text or delta.finish_reason or (self._with_logprobs and delta.tokens)):
            return []
        content = Delta(content=delta.text)
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            content = Delta(role="assistant", content=delta.text)
        choice = ChatChunkChoice(
            index=delta.index,
            delta=content,
            logprobs=self._logprobs(delta.tokens),
            finish_reason=delta.finish_reason and delta.finish_reason.value,
        )
        return [self._chunk([choice], usage)]

    def usage_chunk(self, usage: Usage) -> ChatChunk:
        """The chunk without choices."""
        return self._chunk([], usage)

    def whole(self, completions: Sequence[Sequence[Completion]], usage: Usage) -> ChatCompletion:
        """All choices of the one conversation."""
        choices = [
            ChatChoice(
                index=completion.index,
                message=AssistantMessage(content=completion.text),
                logprobs=self._logprobs(completion.tokens),
                finish_reason=completion.finish_reason and completion.finish_reason.value,
            )
            for completion in completions[0]
        ]
        answer_head = self._head
        return ChatCompletion(
            id=answer_head.id,
            created=answer_head.created,
            model=answer_head.model,
            choices=choices,
            usage=usage,
            system_fingerprint=answer_head.system_fingerprint,
        )

    def _chunk(self, choices: list[ChatChunkChoice], usage: ChunkUsage) -> ChatChunk:
        answer_head = self._head
        return ChatChunk(
            id=answer_head.id,
            created=answer_head.created,
            model=answer_head.model,
            system_fingerprint=answer_head.system_fingerprint,
            choices=choices,
            usage=usage,
        )

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> ChatLogprobs | None:
        return chat_logprobs(tokens) if self._with_logprobs else None
