"""``POST /generate``, ``/generate_stream`` and ``/``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from pydantic import BaseModel

from app.api.endpoint import Endpoint, ReadRequest
from app.api.forms import only_form, typed_form
from app.api.openapi import takes
from app.api.tgi.openapi import flat_answers
from app.api.tgi.schemas import (
    DEFAULT_MAX_NEW_TOKENS,
    GenerateBody,
    Generated,
    GenerateParameters,
    RootBody,
    StreamEvent,
)
from app.api.tgi.writer import GenerateWriter
from app.errors import RequestError
from app.tasks.generate import GenerateTask, SamplingOptions
from app.tasks.prompts import TextPrompt

_NO_PARAMETERS = GenerateParameters.model_validate({})
_EXAMPLE: dict[str, Any] = {
    "text": {
        "summary": "A text",
        "value": {"inputs": "The capital of France is", "parameters": {"max_new_tokens": 8, "details": True}},
    }
}


def read_generate(body: GenerateBody, *, stream: bool, in_list: bool = False) -> ReadRequest:
    """What a body asks for. Raises :class:`RequestError` 400.

    Args:
        in_list: put the whole answer in a list.
    """
    parameters = body.parameters or _NO_PARAMETERS
    if stream and parameters.decoder_input_details:
        message = "decoder_input_details is not supported with streams."
        raise RequestError(message, code="unsupported_parameter", param="decoder_input_details")
    form = only_form(typed_form(parameters.grammar))
    task = GenerateTask(
        prompts=[
            TextPrompt(
                text=body.inputs,
                parse_special=parameters.parse_special is not False,
                keep_last=parameters.truncate,
            )
        ],
        sampling=_sampling_options(parameters, stream=stream),
        max_tokens=parameters.max_new_tokens,
        default_max_tokens=DEFAULT_MAX_NEW_TOKENS,
        form=form.grammar if form else None,
        names={"prompt": "inputs", "logprobs": "top_n_tokens", "form": form.param if form else "form"},
    )
    return ReadRequest(
        task=task,
        writer=lambda head: GenerateWriter(head, body, parameters, stream=stream, in_list=in_list),
        stream=stream,
        timeout=body.timeout,
    )


def _read_root(body: RootBody) -> ReadRequest:
    return read_generate(body, stream=bool(body.stream), in_list=True)


def _sampling_options(parameters: GenerateParameters, *, stream: bool) -> SamplingOptions:
    temperature = 1.0 if parameters.temperature is None else parameters.temperature
    top_p = 1.0 if parameters.top_p is None else parameters.top_p
    samples = parameters.do_sample or temperature != 1.0 or top_p != 1.0 or parameters.top_k is not None
    with_details = parameters.details or parameters.decoder_input_details
    with_logprobs = stream or with_details or parameters.top_n_tokens
    return SamplingOptions(
        temperature=temperature if samples else 0.0,
        top_p=top_p,
        top_k=parameters.top_k,
        repetition_penalty=parameters.repetition_penalty,
        frequency_penalty=parameters.frequency_penalty,
        stop=tuple(parameters.stop or ()),
        include_stop=True,
        seed=parameters.seed,
        logprobs=(parameters.top_n_tokens or 0) if with_logprobs else None,
        prompt_logprobs=0 if parameters.decoder_input_details else None,
        model_defaults=False,
    )


def _parts(body: GenerateBody) -> Iterable[BaseModel]:
    return (body,) if body.parameters is None else (body, body.parameters)


def _endpoint(
    path: str,
    name: str,
    summary: str,
    description: str,
    responses: dict[int | str, dict[str, Any]],
    read: Callable[[GenerateBody], ReadRequest],
) -> Endpoint[GenerateBody]:
    return Endpoint(
        path=path,
        name=name,
        summary=summary,
        description=description,
        request_body=takes(GenerateBody, _EXAMPLE),
        responses=responses,
        schema=GenerateBody,
        read=read,
        parts=_parts,
        id_prefix="gen",
    )


WHOLE = _endpoint(
    "/generate",
    "generate",
    "Go on with a text",
    "The whole answer at once. What the server cannot do is refused with 422 that names the parameter.",
    flat_answers(Generated),
    partial(read_generate, stream=False),
)
STREAM = _endpoint(
    "/generate_stream",
    "generate_stream",
    "Go on with a text, token by token",
    "One event a token; the last one has the whole text. A failure is a last event with `error`.",
    flat_answers(event=StreamEvent),
    partial(read_generate, stream=True),
)
EITHER = Endpoint(
    path="/",
    name="either",
    summary="Go on with a text, either way",
    description="As `/generate_stream` if the body says `stream`; else as `/generate`, the answer in a list of one.",
    request_body=takes(RootBody, _EXAMPLE),
    responses=flat_answers(Generated, StreamEvent, in_list=True),
    schema=RootBody,
    read=_read_root,
    parts=_parts,
    id_prefix="gen",
)
