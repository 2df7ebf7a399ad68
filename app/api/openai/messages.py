"""Messages as the OpenAI protocol has them, read as a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from app.api.openai.schemas.chat import Message
from app.errors import RequestError
from app.tasks.prompts import Conversation


class TemplateOptions(Protocol):
    """Fields of a body that say how the messages become a prompt."""

    @property
    def add_generation_prompt(self) -> bool | None:
        """Open the assistant's turn; by default unless the last message is to be continued."""

    @property
    def continue_final_message(self) -> bool | None:
        """Go on with the last message."""

    @property
    def chat_template(self) -> str | None:
        """Name of one of the model's templates."""

    @property
    def chat_template_kwargs(self) -> dict[str, Any] | None:
        """Variables for the template."""

    @property
    def reasoning_effort(self) -> str | None:
        """The variable of this name."""


_MAY_BE_EMPTY = frozenset({"assistant", "tool", "function"})
"""Roles whose messages may have no content."""


def last_answer(messages: Sequence[Message]) -> str:
    """Text of the last message if it is the assistant's, or nothing."""
    last = messages[-1]
    if last.role != "assistant" or last.content is None:
        return ""
    return last.content if isinstance(last.content, str) else "\n".join(part.text for part in last.content)


def read_conversation(
    messages: Sequence[Message], options: TemplateOptions, *, keep_last: int | None = None
) -> Conversation:
    """The conversation.

    Args:
        keep_last: number of the prompt's tokens that are kept, the last ones; None keeps all.

    Raises:
        RequestError: 400, a turn of a user or the system has no content.
    """
    for position, message in enumerate(messages):
        if message.content is None and message.role not in _MAY_BE_EMPTY:
            param = f"messages[{position}].content"
            raise RequestError(f"{param} is required.", code="missing_required_parameter", param=param)
    turns = [message.model_dump() for message in messages]
    _modernise(turns)
    continues = bool(options.continue_final_message)
    variables = dict(options.chat_template_kwargs or {})
    names = {name: f"chat_template_kwargs.{name}" for name in variables}
    effort = options.reasoning_effort
    if effort not in (None, "none") and "reasoning_effort" not in variables:
        variables["reasoning_effort"] = effort
    return Conversation(
        messages=turns,
        add_generation_prompt=not continues if options.add_generation_prompt is None else options.add_generation_prompt,
        continue_final_message=continues,
        template_kwargs=variables,
        names=names,
        keep_last=keep_last,
        template=options.chat_template,
    )


def _modernise(turns: Sequence[dict[str, Any]]) -> None:
    """Gives turns the roles and fields that templates are written for: OpenAI has newer and older names for some."""
    call_id = None
    names: dict[Any, Any] = {}
    for position, turn in enumerate(turns):
        call = turn.get("function_call")
        if turn["role"] == "developer":
            turn["role"] = "system"
        elif turn["role"] == "function":
            turn["role"] = "tool"
            if call_id is not None:
                turn.setdefault("tool_call_id", call_id)
        elif turn["role"] == "assistant" and isinstance(call, dict) and not turn.get("tool_calls"):
            del turn["function_call"]
            call_id = f"call{position:05d}"  # nine letters, as some templates insist
            turn["tool_calls"] = [{"id": call_id, "type": "function", "function": call}]
        for made in turn.get("tool_calls") or ():
            if isinstance(made, dict) and isinstance(made.get("function"), dict) and isinstance(made.get("id"), str):
                names[made["id"]] = made["function"].get("name")
        called = names.get(turn.get("tool_call_id")) if turn["role"] == "tool" else None
        if called and not turn.get("name"):
            turn["name"] = called  # which some templates show
