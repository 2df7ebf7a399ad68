"""``POST /generate``, ``/generate_stream`` and ``/``, ``GET /info``: the protocol of text-generation-inference.

A stop string is part of the answer here, and nothing is sampled unless asked for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import APIRouter
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from app.api.body import read_body
from app.api.disconnect import UntilDisconnect
from app.api.errors import flat_error, internal_error
from app.api.extras import ignored_fields, ignored_header
from app.api.generations import read_deltas, read_whole, submitted
from app.api.json import encode, json_response
from app.api.middleware import request_id
from app.api.openai.answer import deadline, is_strict
from app.api.openapi import flat_answers, takes
from app.api.params import GREEDY_BELOW, at_most, check_logprobs
from app.api.schemas.generate import (
    DEFAULT_MAX_NEW_TOKENS,
    Details,
    GenerateBody,
    Generated,
    GenerateParameters,
    Info,
    RootBody,
    StreamDetails,
    StreamEvent,
)
from app.api.service import Service
from app.api.sse import EventStream
from app.api.timing import generation_phases, server_timing
from app.api.token_writer import TokenWriter, prefill_token
from app.errors import RequestError
from app.serving.generation import Completion, Generation
from app.serving.served import Served
from app.serving.types import ChoiceDelta, GenerationRequest
from app.types import FinishReason, SamplingParams
from app.version import __version__

WHOLE, STREAM, EITHER = "/generate", "/generate_stream", "/"
_EXAMPLE: dict[str, Any] = {
    "text": {
        "summary": "A text",
        "value": {"inputs": "The capital of France is", "parameters": {"max_new_tokens": 8, "details": True}},
    }
}
_log = structlog.get_logger("tuili.api")


def router(service: Service) -> APIRouter:
    """The routes, over one service."""
    routes = APIRouter(tags=["Generate"])

    @routes.post(
        WHOLE,
        summary="Go on with a text",
        openapi_extra=takes(GenerateBody, _EXAMPLE),
        responses=flat_answers(Generated),
    )
    async def generate(request: Request) -> Response:
        """The whole answer at once. What the server cannot do is refused with 422 that names the parameter."""
        body = await read_body(request, GenerateBody)
        return (await _prepare(request, service, body, endpoint=WHOLE, stream=False)).response(request)

    @routes.post(
        STREAM,
        summary="Go on with a text, token by token",
        openapi_extra=takes(GenerateBody, _EXAMPLE),
        responses=flat_answers(event=StreamEvent),
    )
    async def generate_stream(request: Request) -> Response:
        """One event a token; the last one has the whole text. A failure is a last event with `error`."""
        body = await read_body(request, GenerateBody)
        return (await _prepare(request, service, body, endpoint=STREAM, stream=True)).response(request)

    @routes.post(
        EITHER,
        summary="Go on with a text, either way",
        openapi_extra=takes(RootBody, _EXAMPLE),
        responses=flat_answers(Generated, StreamEvent, in_list=True),
    )
    async def either(request: Request) -> Response:
        """As `/generate_stream` if the body says `stream`; else as `/generate`, the answer in a list of one."""
        body = await read_body(request, RootBody)
        return (await _prepare(request, service, body, endpoint=EITHER, stream=bool(body.stream))).response(request)

    @routes.get("/info", summary="Model and limits", responses=flat_answers(Info, errors=(503,)))
    async def info() -> Response:
        """What a client of text-generation-inference asks before it sends anything."""
        return json_response(_info(service))

    return routes


def _info(service: Service) -> Info:
    served = service.models.default
    facts = served.info()
    max_model_len = served.generator.max_model_len
    return Info(
        model_id=served.name,
        model_dtype=facts.dtype,
        model_device_type=facts.device,
        max_concurrent_requests=served.generator.capacity,
        max_stop_sequences=service.settings.max_stop,
        max_input_tokens=max_model_len - 1,
        max_total_tokens=max_model_len,
        version=__version__,
    )


async def _prepare(request: Request, service: Service, body: GenerateBody, *, endpoint: str, stream: bool) -> _Answer:
    strict = is_strict(request, service)
    parameters = body.parameters or GenerateParameters.model_validate({})
    ignored = [*ignored_fields(body, strict=strict), *ignored_fields(parameters, strict=strict)]
    at_most("stop", len(parameters.stop or ()), service.settings.max_stop, "stop strings")
    check_logprobs("top_n_tokens", parameters.top_n_tokens, service.settings)
    if stream and parameters.decoder_input_details:
        message = "decoder_input_details is not supported with streams."
        raise RequestError(message, code="unsupported_parameter", param="decoder_input_details")
    ends = deadline(request, body.timeout, service)
    name = f"gen-{request_id(request.scope)}"
    served = service.models.default
    with served.generator.reserved(name, endpoint=endpoint):
        prompt = await served.generator.tokenizer.encode_async(
            body.inputs,
            deadline=ends,
            parse_special=parameters.parse_special is not False,
            max_tokens=served.generator.max_model_len,
            keep_last=parameters.truncate,
        )
    max_tokens = parameters.max_new_tokens or min(
        DEFAULT_MAX_NEW_TOKENS, max(1, served.generator.remaining_tokens(len(prompt)))
    )
    generation_request = GenerationRequest(
        request_id=name,
        prompt_token_ids=prompt,
        params=_sampling_params(parameters, max_tokens, stream=stream),
        deadline=ends,
    )
    return _Answer(service, served, endpoint, stream, body, parameters, generation_request, ignored_header(ignored))


def _sampling_params(parameters: GenerateParameters, max_tokens: int, *, stream: bool) -> SamplingParams:
    temperature = 1.0 if parameters.temperature is None else parameters.temperature
    top_p = 1.0 if parameters.top_p is None else parameters.top_p
    samples = parameters.do_sample or temperature != 1.0 or top_p != 1.0 or parameters.top_k is not None
    with_details = parameters.details or parameters.decoder_input_details
    with_logprobs = stream or with_details or parameters.top_n_tokens
    return SamplingParams(
        temperature=temperature if samples and temperature >= GREEDY_BELOW else 0.0,
        top_p=top_p,
        top_k=parameters.top_k or 0,
        repetition_penalty=1.0 if parameters.repetition_penalty is None else parameters.repetition_penalty,
        frequency_penalty=parameters.frequency_penalty or 0.0,
        max_tokens=max_tokens,
        stop=tuple(parameters.stop or ()),
        include_stop=True,
        seed=parameters.seed,
        logprobs=(parameters.top_n_tokens or 0) if with_logprobs else None,
        prompt_logprobs=0 if parameters.decoder_input_details else None,
    )


@dataclass(frozen=True, slots=True)
class _Answer:
    """A request that is ready to be submitted, and how it is answered."""

    service: Service
    served: Served
    endpoint: str
    stream: bool
    body: GenerateBody
    parameters: GenerateParameters
    request: GenerationRequest
    headers: dict[str, str]

    def response(self, request: Request) -> Response:
        """Submits, reads and sends; ends everything at once when the client leaves."""
        started = time.monotonic()
        http_id = request_id(request.scope)

        async def work(send: Send) -> None:
            async with submitted(
                self.service,
                self.served,
                [self.request],
                request_id=http_id,
                endpoint=self.endpoint,
                stream=self.stream,
            ) as generations:
                if self.stream:
                    await self._send_events(EventStream(send, self.headers, prefix=b"data:"), generations[0], http_id)
                else:
                    ((completion,),) = await read_whole(generations)
                    headers = {**self.headers, **_headers(generations[0], started), **server_timing(generations)}
                    whole = self._whole(completion, generations[0])
                    answer = [whole] if self.endpoint == EITHER else whole
                    await json_response(answer, headers=headers)(request.scope, request.receive, send)

        return UntilDisconnect(work)

    def _whole(self, completion: Completion, generation: Generation) -> Generated:
        text = self._full_text(completion.text)
        parameters = self.parameters
        if not (parameters.details or parameters.decoder_input_details or parameters.top_n_tokens):
            return Generated(generated_text=text)
        writer = TokenWriter(self.served.generator.tokenizer)
        tokens = writer.tokens(completion)
        details = Details(
            finish_reason=_finish_reason(completion),
            generated_tokens=generation.usage.completion_tokens,
            seed=_seed(generation),
            prefill=[prefill_token(token) for token in completion.prompt_logprobs or ()],
            tokens=tokens,
            top_tokens=[writer.top_tokens(token) for token in completion.tokens] if parameters.top_n_tokens else UNSET,
        )
        return Generated(generated_text=text, details=details)

    def _full_text(self, text: str) -> str:
        return self.body.inputs + text if self.parameters.return_full_text else text

    async def _send_events(self, events: EventStream, generation: Generation, http_id: str) -> None:
        try:
            async with events.kept_alive(self.service.settings.keepalive_interval):
                await self._send_tokens(events, generation)
        except RequestError as error:
            if not events.started:
                raise
            await events.event(flat_error(error)[1])
        except Exception:
            if not events.started:
                raise
            _log.exception("stream failed")
            await events.event(flat_error(internal_error(http_id))[1])
        await events.end()

    async def _send_tokens(self, events: EventStream, generation: Generation) -> None:
        writer = TokenWriter(self.served.generator.tokenizer)
        with_top = bool(self.parameters.top_n_tokens)
        text = ""
        index = 0

        async def send(_: int, delta: ChoiceDelta) -> None:
            nonlocal text, index
            if not events.started:
                events.headers.update({**_prompt_headers(generation), **server_timing([generation])})
            text += delta.text
            tokens = writer.tokens(delta)
            for place, (token, logprob) in enumerate(zip(tokens, delta.tokens, strict=True), start=1):
                index += 1
                ends = delta.finish_reason is not None and place == len(tokens)
                event = StreamEvent(
                    index=index,
                    token=token,
                    top_tokens=writer.top_tokens(logprob) if with_top else UNSET,
                    generated_text=self._full_text(text) if ends else None,
                    details=self._stream_details(delta, generation) if ends else None,
                )
                await events.event(encode(event))

        await read_deltas([generation], send)

    def _stream_details(self, delta: ChoiceDelta, generation: Generation) -> StreamDetails | None:
        if not self.parameters.details:
            return None
        return StreamDetails(
            finish_reason=_finish_reason(delta),
            generated_tokens=generation.usage.completion_tokens,
            seed=_seed(generation),
            input_length=generation.usage.prompt_tokens,
        )


def _finish_reason(part: ChoiceDelta | Completion) -> str:
    if part.finish_reason is FinishReason.LENGTH:
        return "length"
    return "eos_token" if part.stop_reason is None else "stop_sequence"


def _seed(generation: Generation) -> int | None:
    return generation.seed if generation.request.params.temperature else None


def _prompt_headers(generation: Generation) -> dict[str, str]:
    """What is known before the first token leaves."""
    queue = generation_phases([generation]).queue
    headers = {"x-accel-buffering": "no", "x-prompt-tokens": str(generation.usage.prompt_tokens)}
    return headers if queue is None else headers | {"x-queue-time": _milliseconds(queue)}


def _headers(generation: Generation, started: float) -> dict[str, str]:
    """All of a whole answer; times are in milliseconds."""
    known = generation_phases([generation])
    inference = (known.prefill or 0.0) + (known.decode or 0.0)
    tokens = generation.usage.completion_tokens
    return _prompt_headers(generation) | {
        "x-total-time": _milliseconds(time.monotonic() - started),
        "x-inference-time": _milliseconds(inference),
        "x-time-per-token": _milliseconds(inference / max(1, tokens)),
        "x-generated-tokens": str(tokens),
    }


def _milliseconds(seconds: float) -> str:
    return str(int(1000 * seconds))
