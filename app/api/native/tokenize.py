"""``POST /tokenize``, ``POST /detokenize`` and ``GET /tokenizer_info``, as lm-eval's remote tokenizer expects them."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from app.api.body import read_body
from app.api.extras import ignored_headers, is_strict
from app.api.json import json_response
from app.api.native.schemas.tokenize import DetokenizeBody, Detokenized, TokenizeBody, Tokenized, TokenizerInfo
from app.api.openai.messages import read_conversation
from app.api.openai.openapi import answers
from app.api.openapi import takes
from app.api.scope import deadline
from app.api.service import Service
from app.errors import RequestError
from app.tasks.prompts import Prompt, TextPrompt, check_token_ids

_MAX_TOKENS = 1 << 18
"""Most tokens of a text, if the model's context has not more: documents may be longer than a prompt."""
_TOKENIZE_EXAMPLES = {
    "text": {"summary": "A text", "value": {"prompt": "The capital of France is", "add_special_tokens": False}},
    "conversation": {"summary": "A conversation", "value": {"messages": [{"role": "user", "content": "Hi"}]}},
}
_DETOKENIZE_EXAMPLES = {"ids": {"summary": "Token ids", "value": {"tokens": [72, 105]}}}


def router(service: Service) -> APIRouter:
    """The routes, over one service."""
    routes = APIRouter(tags=["Tokenizer"])

    @routes.post(
        "/tokenize",
        summary="Text or conversation to token ids",
        openapi_extra=takes(TokenizeBody, _TOKENIZE_EXAMPLES),
        responses=answers(Tokenized, errors=(400, 404, 413, 429, 500, 503, 504)),
    )
    async def tokenize(request: Request) -> Response:
        """Token ids and their number, next to how many fit the model."""
        body = await read_body(request, TokenizeBody)
        headers = _checked(request, body, service)
        generator = service.models.resolve(body.model).generator
        max_tokens = max(_MAX_TOKENS, generator.max_model_len)
        tokens = (await _read(body).encode(generator, max_tokens, _deadline(request, service))).token_ids
        answer = Tokenized(tokens=tokens, count=len(tokens), max_model_len=generator.max_model_len)
        return json_response(answer, headers=headers)

    @routes.post(
        "/detokenize",
        summary="Token ids to text",
        openapi_extra=takes(DetokenizeBody, _DETOKENIZE_EXAMPLES),
        responses=answers(Detokenized, errors=(400, 404, 413, 429, 500, 504)),
    )
    async def detokenize(request: Request) -> Response:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD."""
        body = await read_body(request, DetokenizeBody)
        headers = _checked(request, body, service)
        tokenizer = service.models.resolve(body.model).generator.tokenizer
        check_token_ids("tokens", body.tokens, tokenizer.vocab_size)
        text = await tokenizer.decode_async(
            body.tokens, skip_special_tokens=False, deadline=_deadline(request, service)
        )
        return json_response(Detokenized(prompt=text), headers=headers)

    @routes.get(
        "/tokenizer_info", summary="Special tokens and chat template", responses=answers(TokenizerInfo, errors=())
    )
    async def tokenizer_info() -> Response:
        """What a client needs to build prompts of its own."""
        served = service.models.default
        tokenizer = served.generator.tokenizer
        return json_response(
            TokenizerInfo(
                model=served.name,
                bos_token=tokenizer.bos_token,
                eos_token=tokenizer.eos_token,
                pad_token=tokenizer.pad_token,
                vocab_size=tokenizer.vocab_size,
                chat_template=served.generator.chat_template.source,
            )
        )

    return routes


def _checked(request: Request, body: BaseModel, service: Service) -> dict[str, str]:
    """Headers of the answer, which name ignored fields. Raises as :func:`ignored_headers`."""
    return ignored_headers([body], strict=is_strict(request, default=service.settings.strict_params))


def _deadline(request: Request, service: Service) -> float | None:
    return deadline(request.scope, None, service.settings.default_timeout)


def _read(body: TokenizeBody) -> Prompt:
    """The one prompt that a body has. Raises :class:`RequestError` 400."""
    if body.messages is None:
        if body.prompt is None:
            raise RequestError("prompt or messages is required.", code="missing_required_parameter", param="prompt")
        return TextPrompt(
            text=body.prompt,
            add_special_tokens=body.add_special_tokens is not False,
            parse_special=body.parse_special is not False,
        )
    if body.prompt is not None:
        raise RequestError("prompt and messages exclude each other.", code="invalid_value", param="prompt")
    if body.add_special_tokens:
        message = "add_special_tokens is not supported with messages: the chat template alone adds special tokens."
        raise RequestError(message, code="unsupported_parameter", param="add_special_tokens")
    if body.parse_special:
        message = "parse_special is not supported with messages: control tokens that they spell are always text."
        raise RequestError(message, code="unsupported_parameter", param="parse_special")
    return read_conversation(body.messages, body)
