"""``POST /tokenize``, ``POST /detokenize`` and ``GET /tokenizer_info``, as lm-eval's remote tokenizer expects them."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.api.body import read_body
from app.api.extras import ignored_fields, ignored_header, is_strict, unheeded
from app.api.json import json_response
from app.api.native.schemas.tokenize import DetokenizeBody, Detokenized, TokenizeBody, Tokenized, TokenizerInfo
from app.api.openai.messages import read_conversation
from app.api.openai.openapi import answers
from app.api.openai.tools import read_tool
from app.api.openapi import takes
from app.api.scope import deadline
from app.api.service import Service
from app.errors import RequestError
from app.tasks.prompts import Prompt, TextPrompt, check_token_ids, unread_variables
from app.tasks.reply import ReplyOptions, with_reply

_MAX_TOKENS = 1 << 18
"""Most tokens of a text, if the model's context has not more: documents may be longer than a prompt."""
_TOKENIZE_EXAMPLES = {
    "text": {"summary": "A text", "value": {"prompt": "The capital of France is", "add_special_tokens": False}},
    "conversation": {"summary": "A conversation", "value": {"messages": [{"role": "user", "content": "Hi"}]}},
}
_OF_CONVERSATIONS = (
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "chat_template_kwargs",
    "reasoning_effort",
)
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
        strict = is_strict(request, default=service.settings.strict_params)
        ignored = ignored_fields(body, strict=strict, generates=False)
        prompt = _read(body)
        ignored += _of_conversations(body, strict=strict)
        served, ends = service.models.resolve(body.model), _deadline(request, service)
        async with served.in_use(ends, endpoint="/tokenize"):
            generator = served.generator
            prompt = with_reply(prompt, _reply(body), generator)
            ignored += unheeded(unread_variables(prompt, generator), strict=strict)
            max_tokens = max(_MAX_TOKENS, generator.max_model_len)
            tokens = (await prompt.encode(generator, max_tokens, ends)).token_ids
            answer = Tokenized(tokens=tokens, count=len(tokens), max_model_len=generator.max_model_len)
        return json_response(answer, headers=ignored_header(ignored))

    @routes.post(
        "/detokenize",
        summary="Token ids to text",
        openapi_extra=takes(DetokenizeBody, _DETOKENIZE_EXAMPLES),
        responses=answers(Detokenized, errors=(400, 404, 413, 429, 500, 504)),
    )
    async def detokenize(request: Request) -> Response:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD."""
        body = await read_body(request, DetokenizeBody)
        strict = is_strict(request, default=service.settings.strict_params)
        ignored = ignored_fields(body, strict=strict, generates=False)
        served, ends = service.models.resolve(body.model), _deadline(request, service)
        async with served.in_use(ends, endpoint="/detokenize"):
            tokenizer = served.generator.tokenizer
            check_token_ids("tokens", body.tokens, tokenizer.vocab_size)
            text = await tokenizer.decode_async(body.tokens, skip_special_tokens=False, deadline=ends)
        return json_response(Detokenized(prompt=text), headers=ignored_header(ignored))

    @routes.get(
        "/tokenizer_info", summary="Special tokens and chat template", responses=answers(TokenizerInfo, errors=())
    )
    async def tokenizer_info() -> Response:
        """What a client needs to build prompts of its own."""
        served = service.models.default
        if served.resident is not None:
            await served.resident.life.read_text_side()
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


def _deadline(request: Request, service: Service) -> float | None:
    return deadline(request.scope, None, service.settings.default_timeout)


def _of_conversations(body: TokenizeBody, *, strict: bool) -> list[str]:
    """Fields that a text does not heed. Raises :class:`RequestError` 400 if there are any and ``strict``."""
    given = [] if body.messages is not None else [name for name in _OF_CONVERSATIONS if getattr(body, name) is not None]
    if given and strict:
        message = f"{given[0]} is for messages, and does nothing to a prompt."
        raise RequestError(message, code="unsupported_parameter", param=given[0])
    return given


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


def _reply(body: TokenizeBody) -> ReplyOptions:
    """The tools, as a chat reads them. Raises :class:`RequestError` 400."""
    reply = ReplyOptions(tools=tuple(read_tool(tool.function) for tool in body.tools or ()))
    reply.check()
    return reply
