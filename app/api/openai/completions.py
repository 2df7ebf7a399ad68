"""``POST /v1/completions``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.api.body import read_body
from app.api.extras import ignored_fields, ignored_header
from app.api.middleware import request_id
from app.api.openai.answer import Answer, ChunkUsage, Head, deadline, generation_request, head, is_strict
from app.api.openai.logprobs import TextOffsets, completion_logprobs, joined
from app.api.openapi import answers, takes
from app.api.params import check_limits, check_logprobs, check_token_ids, sampling_params
from app.api.schemas.completions import Completion, CompletionBody, CompletionChoice, CompletionLogprobs
from app.api.schemas.usage import Usage
from app.api.service import Service
from app.errors import RequestError
from app.serving import generation as serving
from app.serving.generation import Generation
from app.serving.served import Served
from app.serving.types import ChoiceDelta, TokenLogprob
from app.text.detokenizer import IncrementalDetokenizer
from app.text.tokenizer import TextOptions, Tokenizer

ENDPOINT = "/v1/completions"
DEFAULT_MAX_TOKENS = 16
_EXAMPLES = {
    "text": {"summary": "A text", "value": {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}},
    "score": {
        "summary": "Log-probabilities of a prompt of token ids",
        "value": {"prompt": [[504, 3575, 282]], "max_tokens": 0, "echo": True, "logprobs": 1},
    },
}


@dataclass(frozen=True, slots=True)
class _Prompt:
    token_ids: list[int]
    text: str
    """As ``echo`` repeats it."""
    offsets: list[int] | None = None
    """Where the tokens of a given text begin in it, if their log-probabilities are repeated too."""


def router(service: Service) -> APIRouter:
    """The route, over one service."""
    routes = APIRouter(tags=["OpenAI"])

    @routes.post(
        ENDPOINT,
        summary="Go on with a text",
        openapi_extra=takes(CompletionBody, _EXAMPLES),
        responses=answers(Completion, Completion),
    )
    async def create_completion(request: Request) -> Response:
        """Continues one or several prompts, whole or as a stream of chunks.

        Fields that nobody knows are named back in `X-Ignored-Params`; `?strict=true` refuses them.
        """
        body = await read_body(request, CompletionBody)
        ignored = ignored_fields(body, strict=is_strict(request, service))
        served = service.models.resolve(body.model)
        given = _given_prompts(body)
        max_tokens = _check(body, len(given), service)
        ends = deadline(request, body.timeout, service)
        answer_id = f"cmpl-{request_id(request.scope)}"
        with served.generator.reserved(answer_id, endpoint=ENDPOINT, n=len(given) * (body.n or 1)):
            prompts = [await _encode(prompt, body, served, ends) for prompt in given]
        params = sampling_params(
            body,
            served,
            max_tokens=max_tokens,
            logprobs=body.logprobs,
            prompt_logprobs=body.logprobs if body.echo else None,
        )
        requests = [
            generation_request(f"{answer_id}-{index}", prompt.token_ids, params, body, ends)
            for index, prompt in enumerate(prompts)
        ]
        writer = CompletionWriter(head(answer_id, served, body.model), body, prompts, served.generator.tokenizer)
        return Answer(service, served, ENDPOINT, body, requests, writer, ignored_header(ignored)).response(request)

    return routes


def _given_prompts(body: CompletionBody) -> Sequence[str | list[int]]:
    """The prompts one by one, whichever form they came in."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [prompt]
    return prompt


def _check(body: CompletionBody, num_prompts: int, service: Service) -> int:
    """Checks what spans several fields; returns the most tokens of an answer."""
    check_limits(body, service.settings, num_prompts=num_prompts)
    check_logprobs("logprobs", body.logprobs, service.settings)
    if body.best_of is not None and body.best_of != (body.n or 1):
        message = "best_of is not supported by this server but for the value of n."
        raise RequestError(message, code="unsupported_parameter", param="best_of")
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    if max_tokens == 0 and not body.echo:
        raise RequestError("max_tokens must be at least 1 without echo.", code="invalid_value", param="max_tokens")
    return max_tokens


async def _encode(prompt: str | list[int], body: CompletionBody, served: Served, ends: float | None) -> _Prompt:
    tokenizer = served.generator.tokenizer
    max_tokens = served.generator.max_model_len
    if isinstance(prompt, str):
        encoded = await _encode_text(prompt, body, tokenizer, max_tokens, ends)
    else:
        if len(prompt) > max_tokens:
            message = f"prompt has {len(prompt)} tokens, more than the {max_tokens} that fit."
            raise RequestError(message, code="context_length_exceeded", param="prompt")
        check_token_ids("prompt", prompt, served.info().vocab_size)
        skip = body.skip_special_tokens is not False
        text = await tokenizer.decode_async(prompt, skip_special_tokens=skip, deadline=ends) if body.echo else ""
        encoded = _Prompt(prompt, text)
    if not encoded.token_ids:
        raise RequestError("prompt has no tokens.", code="invalid_value", param="prompt")
    return encoded


async def _encode_text(
    text: str, body: CompletionBody, tokenizer: Tokenizer, max_tokens: int, ends: float | None
) -> _Prompt:
    options: TextOptions = {
        "add_special_tokens": body.add_special_tokens is not False,
        "parse_special": body.parse_special is not False,
        "max_tokens": max_tokens,
    }
    if body.echo and body.logprobs is not None:
        token_ids, offsets = await tokenizer.encode_with_offsets_async(text, deadline=ends, **options)
        return _Prompt(token_ids, text, offsets)
    return _Prompt(await tokenizer.encode_async(text, deadline=ends, **options), text)


@dataclass(slots=True)
class _ChoiceState:
    offsets: TextOffsets
    begun: bool = False


@dataclass(slots=True)
class _StreamedPrompt:
    held: list[ChoiceDelta] = field(default_factory=list)
    """Deltas that came before the prompt's log-probabilities, which belong to another choice."""
    choices: dict[int, _ChoiceState] = field(default_factory=dict)


class CompletionWriter:
    """Writes the answers to one or several prompts; the index of a choice is prompt index * n + choice."""

    def __init__(
        self, answer_head: Head, body: CompletionBody, prompts: Sequence[_Prompt], tokenizer: Tokenizer
    ) -> None:
        self._head = answer_head
        self._prompts = prompts
        self._tokenizer = tokenizer
        self._n = body.n or 1
        self._echo = bool(body.echo)
        self._with_logprobs = body.logprobs is not None
        self._skip_special_tokens = body.skip_special_tokens is not False
        self._streamed = [_StreamedPrompt() for _ in prompts]

    def chunks(self, prompt: int, delta: ChoiceDelta, generation: Generation, usage: ChunkUsage) -> list[Completion]:
        """The echo comes with a choice's first delta; what shows nothing makes no chunk."""
        state = self._streamed[prompt]
        state.held.append(delta)
        if self._echo and self._with_logprobs and generation.prompt_logprobs is None:
            return []
        deltas, state.held = state.held, []
        choices = [self._delta_choice(prompt, each, generation.prompt_logprobs) for each in deltas]
        return [self._completion([choice], usage) for choice in choices if self._shows(choice)]

    def usage_chunk(self, usage: Usage) -> Completion:
        """The chunk without choices."""
        return self._completion([], usage)

    def whole(self, completions: Sequence[Sequence[serving.Completion]], usage: Usage) -> Completion:
        """All choices of all prompts."""
        choices = [
            self._choice(prompt, completion, self._new_choice(prompt), completion.prompt_logprobs)
            for prompt, choices in enumerate(completions)
            for completion in choices
        ]
        return self._completion(choices, usage)

    def _delta_choice(
        self, prompt: int, delta: ChoiceDelta, prompt_logprobs: Sequence[TokenLogprob] | None
    ) -> CompletionChoice:
        choices = self._streamed[prompt].choices
        if delta.index not in choices:
            choices[delta.index] = self._new_choice(prompt)
        return self._choice(prompt, delta, choices[delta.index], prompt_logprobs)

    def _choice(
        self,
        prompt: int,
        part: ChoiceDelta | serving.Completion,
        state: _ChoiceState,
        prompt_logprobs: Sequence[TokenLogprob] | None,
    ) -> CompletionChoice:
        text = part.text
        logprobs = completion_logprobs(part.tokens, state.offsets.advance(part.tokens)) if self._with_logprobs else None
        if self._echo and not state.begun:
            text = self._prompts[prompt].text + text
            if logprobs is not None:
                logprobs = joined(self._prompt_logprobs(prompt, prompt_logprobs or ()), logprobs)
        state.begun = True
        return CompletionChoice(
            index=prompt * self._n + part.index,
            text=text,
            logprobs=logprobs,
            finish_reason=part.finish_reason and part.finish_reason.value,
        )

    def _new_choice(self, prompt: int) -> _ChoiceState:
        start = len(self._prompts[prompt].text) if self._echo else 0
        return _ChoiceState(TextOffsets(IncrementalDetokenizer(self._tokenizer, self._skip_special_tokens), start))

    def _prompt_logprobs(self, prompt: int, tokens: Sequence[TokenLogprob]) -> CompletionLogprobs:
        offsets = self._prompts[prompt].offsets
        if offsets is None:
            detokenizer = IncrementalDetokenizer(self._tokenizer, self._skip_special_tokens, starts_text=True)
            offsets = TextOffsets(detokenizer).advance(tokens)
        return completion_logprobs(tokens, offsets[: len(tokens)])

    @staticmethod
    def _shows(choice: CompletionChoice) -> bool:
        return bool(choice.text or choice.finish_reason or (choice.logprobs is not None and choice.logprobs.tokens))

    def _completion(self, choices: list[CompletionChoice], usage: ChunkUsage) -> Completion:
        answer_head = self._head
        return Completion(
            id=answer_head.id,
            created=answer_head.created,
            model=answer_head.model,
            system_fingerprint=answer_head.system_fingerprint,
            choices=choices,
            usage=usage,
        )
