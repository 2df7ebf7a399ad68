"""Content blocks and messages that clients send."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from app.api.fields import MAX_ITEMS, Part, text_or_list, type_tag

MAX_MESSAGES = 8192
MAX_BLOCKS = 4096
"""Blocks of a message."""
_MAX_SHOWN = 64

CacheControl = Annotated[
    Annotated[dict[str, Any], Field(max_length=8)] | None,
    Field(description="Every prompt's beginning is kept for the next one, marked or not."),
]
Identifier = Annotated[str, Field(min_length=1, max_length=256)]


class TextBlock(Part):
    """A piece of text."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl = None


class ThinkingBlock(Part):
    """The assistant's thought, as an answer had it."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = Field(None, description="Not looked at.")


class RedactedThinkingBlock(Part):
    """A thought that nobody but its maker can read. The model does not see it."""

    type: Literal["redacted_thinking"]


class ToolUseBlock(Part):
    """A call of a tool that the assistant made."""

    type: Literal["tool_use"]
    id: Identifier
    name: Identifier
    input: Annotated[dict[str, Any], Field(max_length=MAX_ITEMS)]
    cache_control: CacheControl = None
    caller: Annotated[dict[str, Any], Field(max_length=8)] | None = Field(None, description="As answers have it.")


def _supports(*kinds: str) -> BeforeValidator:
    """Refuses blocks of other kinds by their type, not by the fields that they lack."""

    def check(value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind not in kinds:
            shown = repr(kind[:_MAX_SHOWN])
            message = "is of type {kind}, which is not supported here; these are: {kinds}"
            raise PydanticCustomError("unsupported_block", message, {"kind": shown, "kinds": ", ".join(kinds)})
        return value

    return BeforeValidator(check)


OnlyText = Annotated[TextBlock, _supports("text")]
TextBlocks = Annotated[list[OnlyText], Field(fail_fast=True, max_length=MAX_BLOCKS)]
Texts = Annotated[Annotated[str, Tag("text")] | Annotated[TextBlocks, Tag("list")], Discriminator(text_or_list)]
"""A text, or blocks of text."""


class ToolResultBlock(Part):
    """What a call of a tool led to."""

    type: Literal["tool_result"]
    tool_use_id: Identifier
    content: Texts | None = None
    is_error: bool | None = Field(None, description="The text is put behind `Error: ` for the model.")
    cache_control: CacheControl = None


ContentBlock = Annotated[
    Annotated[TextBlock, Tag("=text")]
    | Annotated[ThinkingBlock, Tag("=thinking")]
    | Annotated[RedactedThinkingBlock, Tag("=redacted_thinking")]
    | Annotated[ToolUseBlock, Tag("=tool_use")]
    | Annotated[ToolResultBlock, Tag("=tool_result")],
    Discriminator(type_tag),
]
ContentBlocks = Annotated[
    list[Annotated[ContentBlock, _supports("text", "thinking", "redacted_thinking", "tool_use", "tool_result")]],
    Field(fail_fast=True, max_length=MAX_BLOCKS),
]


class InputMessage(Part):
    """One turn of the conversation. Neighbours of one role are one turn."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[Annotated[str, Tag("text")] | Annotated[ContentBlocks, Tag("list")], Discriminator(text_or_list)]


InputMessages = Annotated[list[InputMessage], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]
