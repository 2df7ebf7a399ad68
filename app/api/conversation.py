"""Conversations as prompts: what is checked of their messages, how a template makes tokens of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from app.api.schemas.chat import Message
from app.errors import RequestError
from app.serving.generation import Generator


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


def check_messages(messages: Sequence[Message]) -> None:
    """Refuses turns without content, but for the assistant's. Raises :class:`RequestError` 400."""
    for position, message in enumerate(messages):
        if message.content is None and message.role != "assistant":
            param = f"messages[{position}].content"
            raise RequestError(f"{param} is required.", code="missing_required_parameter", param=param)


async def encode_messages(
    messages: Sequence[Message],
    options: TemplateOptions,
    generator: Generator,
    deadline: float | None,
    *,
    max_tokens: int | None = None,
) -> list[int]:
    """Token ids of a conversation, made off the event loop when it is long.

    Args:
        deadline: instant of ``time.monotonic`` up to which they are of use.
        max_tokens: most tokens that are of use; by default what fits the model.

    Raises:
        RequestError: 400, the model has no template, its template refuses the messages, or they are too long; 504, the
            deadline passed.
    """
    turns = [message.model_dump() for message in messages]
    for turn in turns:
        if turn["role"] == "developer":  # OpenAI's newer name; templates know only the older one
            turn["role"] = "system"
    continues = bool(options.continue_final_message)
    return await generator.chat_template.encode_async(
        turns,
        generator.tokenizer,
        max_tokens=max_tokens or generator.max_model_len,
        deadline=deadline,
        add_generation_prompt=not continues if options.add_generation_prompt is None else options.add_generation_prompt,
        continue_final_message=continues,
        template_kwargs=options.chat_template_kwargs,
    )
