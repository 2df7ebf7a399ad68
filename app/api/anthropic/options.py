"""What a body asks of the answer besides its text: tools, thought, a form."""

from __future__ import annotations

from collections.abc import Sequence

from app.api.anthropic.schemas.bodies import (
    InputTool,
    NamedChoice,
    NoChoice,
    OutputFormat,
    PromptBody,
    ThinkingOff,
    ThinkingOn,
)
from app.api.forms import Form, Wanted, format_form, only_form
from app.errors import RequestError
from app.tasks.reply import ReplyOptions, Tool, ToolChoice


def reply_options(body: PromptBody) -> ReplyOptions:
    """Tools, which of them may be called, and how much thought. Raises :class:`RequestError` 400."""
    thinking = body.thinking
    return ReplyOptions(
        tools=_tools(body.tools or ()),
        choice=_tool_choice(body),
        reasoning_budget=thinking.budget_tokens if isinstance(thinking, ThinkingOn) else None,
        thinks=thinking is not None and not isinstance(thinking, ThinkingOff),
    )


def _tools(given: Sequence[InputTool]) -> tuple[Tool, ...]:
    return tuple(
        Tool(
            name=tool.name,
            description=tool.description or "",
            parameters=tool.input_schema,
            strict=bool(tool.strict),
        )
        for tool in given
    )


def _tool_choice(body: PromptBody) -> ToolChoice:
    choice = body.tool_choice
    if choice is None:
        return ToolChoice()
    if isinstance(choice, NoChoice):
        return ToolChoice(mode="none")
    if not body.tools:
        raise RequestError("tool_choice needs tools.", code="invalid_value", param="tool_choice")
    return ToolChoice(
        mode="auto" if choice.type == "auto" else "required",
        names=frozenset([choice.name]) if isinstance(choice, NamedChoice) else None,
        parallel=not choice.disable_parallel_tool_use,
    )


def answer_form(body: PromptBody) -> Form | None:
    """The form that binds the answer's text. Raises :class:`RequestError` 400."""
    config = body.output_config
    return only_form(
        _schema_form(None if config is None else config.format, "output_config.format.schema"),
        _schema_form(body.output_format, "output_format.schema"),
    )


def _schema_form(asked: OutputFormat | None, name: str) -> Wanted:
    return None if asked is None else format_form(asked.json_schema, name)
