"""``POST /api/generate``."""

from __future__ import annotations

from functools import partial
from typing import Any

from app.api.endpoint import Endpoint, ReadRequest
from app.api.ollama.openapi import ollama_answers
from app.api.ollama.options import ID_PREFIX, load_task, read_keep_alive, read_task, template_variables
from app.api.ollama.schemas.answers import OllamaGenerated
from app.api.ollama.schemas.bodies import OllamaGenerateBody
from app.api.ollama.writer import GenerateWriter, LoadWriter
from app.api.openapi import takes
from app.errors import RequestError
from app.tasks.prompts import Conversation, InfillPrompt, Prompt, TextPrompt

_REFUSED = ("context", "images", "template")
_EXAMPLES: dict[str, Any] = {
    "ollama_generate": {
        "summary": "One question",
        "value": {"prompt": "Why is the sky blue?", "stream": False, "options": {"num_predict": 64}},
    }
}


def read_generate(body: OllamaGenerateBody) -> ReadRequest:
    """What a body asks for. Raises :class:`RequestError` 400."""
    stream = body.stream is not False
    for name in _REFUSED:
        if (body.model_extra or {}).get(name):
            raise RequestError(f"{name} is not supported by this server.", code="unsupported_parameter", param=name)
    keep_alive = read_keep_alive(body)
    if not body.prompt:
        return ReadRequest(
            task=load_task(),
            writer=partial(LoadWriter, GenerateWriter),
            stream=stream,
            model=body.model,
            keep_alive=keep_alive,
            unload=GenerateWriter.unloaded if keep_alive == 0 else None,
        )
    return ReadRequest(
        task=read_task(body, _prompt(body, body.prompt), "prompt"),
        writer=partial(GenerateWriter, with_logprobs=bool(body.logprobs)),
        stream=stream,
        model=body.model,
        keep_alive=keep_alive,
    )


def _prompt(body: OllamaGenerateBody, text: str) -> Prompt:
    if body.raw or body.suffix:
        if body.system:
            message = "system is not supported with raw or suffix: the prompt is taken as it is."
            raise RequestError(message, code="unsupported_parameter", param="system")
        return InfillPrompt(prefix=text, suffix=body.suffix) if body.suffix else TextPrompt(text=text)
    turns = [{"role": "system", "content": body.system}] if body.system else []
    return Conversation(messages=[*turns, {"role": "user", "content": text}], **template_variables(body))


GENERATE = Endpoint(
    path="/api/generate",
    name="ollama_generate",
    summary="Answer a question, in Ollama's shapes",
    description="""The prompt is the one turn of a conversation; with `raw` it is a text to go on with, with
`suffix` what stands before the gap.

Without a prompt: says that the model is loaded.""",
    request_body=takes(OllamaGenerateBody, _EXAMPLES),
    responses=ollama_answers(OllamaGenerated, streams=True),
    schema=OllamaGenerateBody,
    read=read_generate,
    id_prefix=ID_PREFIX,
)
