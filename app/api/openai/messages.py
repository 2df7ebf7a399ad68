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
    def chat_template_kwargs(self) -> dict[str, Any] | None:
        """Variables for the template."""


def read_conversation(messages: Sequence[Message], options: TemplateOptions) -> Conversation:
    """The conversation. Raises :class:`RequestError` 400 for turns without content, but for the assistant's."""
    for position, message in enumerate(messages):
        if message.content is None and message.role != "assistant":
            param = f"messages[{position}].content"
            raise RequestError(f"{param} is required.", code="missing_required_parameter", param=param)
    turns = [message.model_dump() for message in messages]
    for turn in turns:
        if turn["role"] == "developer":  # OpenAI's newer name; templates know only the older one
            turn["role"] = "system"
    continues = bool(options.continue_final_message)
    return Conversation(
        messages=turns,
        add_generation_prompt=not continues if options.add_generation_prompt is None else options.add_generation_prompt,
        continue_final_message=continues,
        template_kwargs=options.chat_template_kwargs,
    )
