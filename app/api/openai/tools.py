"""Tools and thought, as chat bodies ask for them and as answers show them."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET

from app.api.openai.schemas.chat import (
    AllowedToolsChoice,
    AssistantMessage,
    CalledFunction,
    ChatBody,
    Delta,
    DeltaToolCall,
    FunctionDefinition,
    FunctionName,
    MessageToolCall,
    NamedTool,
)
from app.contract.request import FinishReason
from app.errors import RequestError
from app.serving.generation import Completion
from app.tasks.reply import ReplyOptions, Tool, ToolChoice
from app.text.parsers.reply import CallDelta, Content, Reasoning, ReplyPart

_BUDGETS = ("thinking_token_budget", "thinking_budget", "thinking_budget_tokens", "reasoning_budget")
"""Names of the most tokens of thought; of several that are given the first is heeded."""
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


def read_reply(body: ChatBody) -> ReplyOptions:
    """What the reply may be made of. Raises :class:`RequestError` 400 for older and newer names of tools together."""
    if body.functions and body.tools:
        raise RequestError("functions and tools exclude each other.", code="invalid_value", param="functions")
    definitions = body.functions or [tool.function for tool in body.tools or ()]
    budget = next((value for name in _BUDGETS if (value := getattr(body, name)) is not None), None)
    return ReplyOptions(
        tools=tuple(map(read_tool, definitions)),
        choice=_choice(body),
        reasoning_budget=None if budget == -1 else budget,
        thinks=_thinks(body),
    )


def reply_names(body: ChatBody) -> dict[str, str]:
    """Names that a body has for fields of :class:`ReplyOptions`."""
    budget = next((name for name in _BUDGETS if getattr(body, name) is not None), "reasoning_budget")
    # An effort is also a variable of the template, and as that named back or not.
    return {"reasoning_budget": budget, **({} if body.enable_thinking is None else {"thinks": "enable_thinking"})}


def _thinks(body: ChatBody) -> bool | None:
    if body.enable_thinking is not None or body.reasoning_effort is None:
        return body.enable_thinking
    return body.reasoning_effort != "none"


def read_tool(definition: FunctionDefinition) -> Tool:
    """A tool of its definition."""
    return Tool(
        name=definition.name,
        description=definition.description or "",
        parameters=_NO_ARGUMENTS if definition.parameters is None else definition.parameters,
        strict=bool(definition.strict),
    )


def _choice(body: ChatBody) -> ToolChoice:
    if body.functions:
        if isinstance(body.function_call, FunctionName):
            return ToolChoice(mode="required", names=frozenset([body.function_call.name]), parallel=False)
        return ToolChoice(mode=body.function_call or "auto", parallel=False)
    parallel = body.parallel_tool_calls is not False
    match body.tool_choice:
        case NamedTool(function=function):
            return ToolChoice(mode="required", names=frozenset([function.name]), parallel=False)
        case AllowedToolsChoice(allowed_tools=allowed):
            names = frozenset(tool.function.name for tool in allowed.tools)
            return ToolChoice(mode=allowed.mode, names=names, parallel=parallel)
        case "none":
            return ToolChoice(mode="none")
        case "required" | "any":
            return ToolChoice(mode="required", parallel=parallel)
    return ToolChoice(parallel=parallel)


class ReplyShape:
    """How the parts of replies are shown, by what was asked for."""

    def __init__(self, body: ChatBody) -> None:
        self._legacy = bool(body.functions)
        self._named = isinstance(body.tool_choice, NamedTool) or isinstance(body.function_call, FunctionName)
        self._with_thought = body.include_reasoning is not False

    def finish_reason(self, reason: FinishReason | None, *, called: bool) -> str | None:
        """Why an answer ended. That of a call that the client itself chose is ``stop``, as OpenAI has it."""
        if reason is FinishReason.STOP and called and not self._named:
            return "function_call" if self._legacy else "tool_calls"
        return reason and reason.value

    def message(self, completion: Completion, before: str) -> AssistantMessage:
        """A whole answer.

        Args:
            before: text that comes before its content.
        """
        content = before + completion.text
        calls = [
            MessageToolCall(id=call.id, function=CalledFunction(name=call.name, arguments=call.arguments))
            for call in completion.calls
        ]
        thought = (completion.reasoning or UNSET) if self._with_thought else UNSET
        return AssistantMessage(
            content=None if not content and (calls or completion.reasoning) else content,
            reasoning_content=thought,
            reasoning=thought,
            tool_calls=calls if calls and not self._legacy else UNSET,
            function_call=calls[0].function if calls and self._legacy else UNSET,
        )

    def deltas(self, parts: Sequence[ReplyPart]) -> list[Delta]:
        """What chunks show of the parts that came, in their order."""
        return [delta for part in parts if (delta := self._delta(part)) is not None]

    def _delta(self, part: ReplyPart) -> Delta | None:
        match part:
            case Content(text=text):
                return Delta(content=text)
            case Reasoning(text=text):
                return Delta(reasoning_content=text, reasoning=text) if self._with_thought else None
            case CallDelta():
                function = CalledFunction(name=part.name or UNSET, arguments=part.arguments)
                if self._legacy:
                    return Delta(function_call=function) if part.index == 0 else None
                begins = bool(part.id)
                call = DeltaToolCall(
                    index=part.index,
                    id=part.id if begins else UNSET,
                    type="function" if begins else UNSET,
                    function=function,
                )
                return Delta(tool_calls=[call])
