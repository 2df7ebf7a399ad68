"""What a body asks for besides its items, in the terms of the task, and how the answer shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.api.fields import read_logit_bias
from app.api.responses.schemas.body import NamedChoice, ResponsesBody, ToolName
from app.errors import RequestError
from app.tasks.generate import SamplingOptions
from app.tasks.reply import ReplyOptions, Tool, ToolChoice

LOGPROBS = "message.output_text.logprobs"
"""The one thing that an answer can include."""
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
_REFUSED = {
    "conversation": "conversations are kept by their last response: send previous_response_id",
    "prompt": "there are no stored prompts",
    "context_management": "nothing is compacted; truncation leaves out old turns",
}


def check_supported(body: ResponsesBody) -> None:
    """Refuses what would change the answer and is not done. Raises :class:`RequestError` 400."""
    for name, reason in _REFUSED.items():
        if getattr(body, name) is not None:
            raise RequestError(f"{name} is not supported: {reason}.", code="unsupported_parameter", param=name)
    if body.background:
        message = "background is not supported: answers are made while the client waits."
        raise RequestError(message, code="unsupported_parameter", param="background")


def sampling_options(body: ResponsesBody) -> SamplingOptions:
    """How to sample. Raises :class:`RequestError` 400, biases of what is no token id."""
    with_logprobs = body.top_logprobs is not None or LOGPROBS in (body.include or ())
    return SamplingOptions(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=read_logit_bias(body.logit_bias),
        seed=body.seed,
        min_tokens=body.min_tokens,
        stop=(body.stop,) if body.stop and isinstance(body.stop, str) else tuple(body.stop or ()),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=body.ignore_eos,
        logprobs=(body.top_logprobs or 0) if with_logprobs else None,
    )


def reply_options(body: ResponsesBody) -> ReplyOptions:
    """Which tools may be called, and whether the model is to think. Raises :class:`RequestError` 400."""
    tools = tuple(
        Tool(
            name=tool.name,
            description=tool.description or "",
            parameters=_NO_ARGUMENTS if tool.parameters is None else tool.parameters,
            strict=tool.strict is not False,
        )
        for tool in body.tools or ()
    )
    effort = body.reasoning.effort if body.reasoning else None
    budget = body.thinking_token_budget
    return ReplyOptions(
        tools=tools,
        choice=_choice(body),
        reasoning_budget=None if budget == -1 else budget,
        thinks=None if effort is None else effort != "none",
    )


def _choice(body: ResponsesBody) -> ToolChoice:
    parallel = body.parallel_tool_calls is not False and body.max_tool_calls != 1
    given = body.tool_choice
    if given is None or isinstance(given, str):
        if given == "required" and not body.tools:
            raise _no_such_tool("tool_choice: there are no tools to call.")
        return ToolChoice(mode=given or "auto", parallel=parallel)
    if given.type == "function":
        if given.name is None:
            message = "tool_choice.name is required."
            raise RequestError(message, code="missing_required_parameter", param="tool_choice.name")
        return ToolChoice(mode="required", names=_known(body, [given.name]), parallel=False)
    if given.tools is None:
        message = "tool_choice.tools is required."
        raise RequestError(message, code="missing_required_parameter", param="tool_choice.tools")
    return ToolChoice(
        mode=given.mode or "auto", names=_known(body, [tool.name for tool in given.tools]), parallel=parallel
    )


def _known(body: ResponsesBody, names: Sequence[str]) -> frozenset[str]:
    tools = {tool.name for tool in body.tools or ()}
    for name in names:
        if name not in tools:
            raise _no_such_tool(f"tool_choice: there is no tool {name!r} among the tools.")
    return frozenset(names)


def _no_such_tool(message: str) -> RequestError:
    return RequestError(message, code="invalid_value", param="tool_choice")


def unheeded(body: ResponsesBody) -> list[str]:
    """Fields that are shown in the answer, or known, and do not change it."""
    names = [f"include.{name}" for name in body.include or () if name != LOGPROBS]
    if body.text and body.text.verbosity not in (None, "medium"):
        names.append("text.verbosity")
    if body.reasoning:
        asked = [name for name in ("summary", "generate_summary") if getattr(body.reasoning, name) is not None]
        names += [f"reasoning.{name}" for name in asked]
    if body.max_tool_calls is not None and body.max_tool_calls > 1:
        names.append("max_tool_calls")
    if body.service_tier not in (None, "auto", "default"):
        names.append("service_tier")
    return names


def shown_tools(body: ResponsesBody) -> list[dict[str, Any]]:
    """The tools as the answer shows them."""
    return [
        {
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
            "strict": tool.strict is not False,
        }
        for tool in body.tools or ()
    ]


def shown_choice(given: str | NamedChoice | None) -> str | dict[str, Any]:
    """The choice of tools as the answer shows it."""
    if given is None or isinstance(given, str):
        return given or "auto"
    if given.type == "function":
        return {"type": "function", "name": given.name}
    return {"type": "allowed_tools", "mode": given.mode or "auto", "tools": [_name(tool) for tool in given.tools or ()]}


def _name(tool: ToolName) -> dict[str, Any]:
    return {"type": "function", "name": tool.name}


def shown_text(body: ResponsesBody) -> dict[str, Any]:
    """The form of the text as the answer shows it."""
    options = body.text
    given = options.format if options else None
    shape: dict[str, Any] = {"type": given.type if given else "text"}
    if given is not None and given.type == "json_schema":
        shape |= {
            "name": given.name or "",
            "description": given.description,
            "schema": given.schema_,
            "strict": given.strict is not False,
        }
    return {"format": shape, "verbosity": (options.verbosity if options else None) or "medium"}


def shown_reasoning(body: ResponsesBody) -> dict[str, Any]:
    """The wishes for reasoning as the answer shows them."""
    given = body.reasoning
    return {"effort": given.effort if given else None, "summary": None}
