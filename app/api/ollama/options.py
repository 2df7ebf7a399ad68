"""What both ways to generate ask for, in the terms of the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from app.api.forms import format_form, only_form
from app.api.ollama.schemas.bodies import OllamaBody, OllamaOptions, OllamaTool
from app.duration import read_duration
from app.errors import RequestError
from app.tasks.generate import GenerateTask, SamplingOptions
from app.tasks.prompts import Conversation, Prompt, TokenPrompt
from app.tasks.reply import ReplyOptions, Tool

ID_PREFIX = "ollama"
_NO_OPTIONS = OllamaOptions.model_validate({})
_NAMES = {
    "stop": "options.stop",
    "context": "options.num_ctx",
    "repetition_penalty": "options.repeat_penalty",
    "logprobs": "top_logprobs",
    "form": "format",
}


class TemplateVariables(TypedDict):
    """Fields of a conversation that say how the template is to render it."""

    template_kwargs: Mapping[str, Any]
    names: Mapping[str, str]


def read_task(body: OllamaBody, prompt: Prompt, name: str, tools: Sequence[OllamaTool] = ()) -> GenerateTask:
    """What a body asks for of a prompt.

    Args:
        name: what the body calls the prompt.

    Raises:
        RequestError: 400.
    """
    options = body.options or _NO_OPTIONS
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs.", code="invalid_value", param="top_logprobs")
    form = only_form(format_form(body.format))
    most = options.num_predict
    return GenerateTask(
        prompts=[prompt],
        sampling=_sampling(options, logprobs=(body.top_logprobs or 0) if body.logprobs else None),
        default_max_tokens=most if most is not None and most > 0 else None,
        context=options.num_ctx,
        form=form.grammar if form else None,
        reply=_reply(body, tools) if isinstance(prompt, Conversation) else None,
        names={**_NAMES, "prompt": name},
    )


def load_task() -> GenerateTask:
    """What a body without a prompt asks for: nothing, of a model that is loaded."""
    return GenerateTask(
        prompts=[TokenPrompt(token_ids=[0])], sampling=SamplingOptions(temperature=0.0, ignore_eos=True), max_tokens=0
    )


def read_keep_alive(body: OllamaBody) -> float | None:
    """Seconds that the model is to stay loaded. Raises :class:`RequestError` 400."""
    if body.keep_alive is None or body.keep_alive == "":
        return None
    try:
        return read_duration(body.keep_alive)
    except ValueError as error:
        raise RequestError(f"keep_alive: {error}.", code="invalid_value", param="keep_alive") from None


def template_variables(body: OllamaBody) -> TemplateVariables:
    """Variables for the chat template."""
    if not isinstance(body.think, str):
        return {"template_kwargs": {}, "names": {}}
    return {"template_kwargs": {"reasoning_effort": body.think}, "names": {"reasoning_effort": "think"}}


def _sampling(options: OllamaOptions, *, logprobs: int | None) -> SamplingOptions:
    stop = options.stop
    return SamplingOptions(
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        repetition_penalty=options.repeat_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        seed=options.seed,
        stop=(stop,) if stop and isinstance(stop, str) else tuple(stop or ()),
        logprobs=logprobs,
    )


def _reply(body: OllamaBody, tools: Sequence[OllamaTool]) -> ReplyOptions:
    return ReplyOptions(
        tools=tuple(
            Tool(
                name=tool.function.name,
                description=tool.function.description or "",
                parameters=tool.function.parameters or {},
            )
            for tool in tools
        ),
        thinks=None if body.think is None else bool(body.think),
    )
