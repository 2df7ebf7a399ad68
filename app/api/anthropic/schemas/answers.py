"""What the Messages protocol answers: messages, the events of a stream, counts, errors."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType


class AnthropicText(msgspec.Struct, frozen=True, kw_only=True, tag="text"):
    """A block of text."""

    text: str
    citations: None = None


class AnthropicThinking(msgspec.Struct, frozen=True, kw_only=True, tag="thinking"):
    """A block of the model's thought."""

    thinking: str
    signature: str
    """A digest of the thought. Clients want one; it proves nothing."""


class DirectCaller(msgspec.Struct, frozen=True, tag="direct"):
    """The model itself."""


class AnthropicToolUse(msgspec.Struct, frozen=True, kw_only=True, tag="tool_use"):
    """A block that calls a tool."""

    id: str
    name: str
    input: dict[str, Any]
    """Of a call that the most tokens cut short, as much as can be read of it."""
    caller: DirectCaller = DirectCaller()


AnthropicBlock = AnthropicText | AnthropicThinking | AnthropicToolUse


class ThinkingTokens(msgspec.Struct, frozen=True):
    """What tokens of an answer were for."""

    thinking_tokens: int


class AnthropicUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of a request. Those of the prompt are all three numbers of input tokens together."""

    input_tokens: int
    """Tokens of the prompt that were computed."""
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    """Tokens of the prompt taken from the prefix cache."""
    output_tokens: int
    output_tokens_details: ThinkingTokens
    cache_creation: None = None
    server_tool_use: None = None
    service_tier: None = None
    inference_geo: None = None


class AnthropicMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The answer."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[AnthropicBlock]
    stop_reason: str | None
    """``end_turn``, ``max_tokens``, ``stop_sequence``, ``tool_use`` or ``model_context_window_exceeded``; null in a
    stream's first event."""
    stop_sequence: str | None = None
    """The text that ended it, if one of those asked for did."""
    stop_details: None = None
    container: None = None
    usage: AnthropicUsage


class MessageStart(msgspec.Struct, frozen=True, tag="message_start"):
    """First event: a message without content."""

    message: AnthropicMessage


class ContentBlockStart(msgspec.Struct, frozen=True, tag="content_block_start"):
    """A block begins, empty."""

    index: int
    content_block: AnthropicBlock


class TextDelta(msgspec.Struct, frozen=True, tag="text_delta"):
    """More of a text."""

    text: str


class InputJsonDelta(msgspec.Struct, frozen=True, tag="input_json_delta"):
    """More of the JSON of a tool's input."""

    partial_json: str


class ThinkingDelta(msgspec.Struct, frozen=True, tag="thinking_delta"):
    """More of a thought."""

    thinking: str


class SignatureDelta(msgspec.Struct, frozen=True, tag="signature_delta"):
    """The signature of a thought, at its end."""

    signature: str


class ContentBlockDelta(msgspec.Struct, frozen=True, tag="content_block_delta"):
    """More of the block that is open."""

    index: int
    delta: TextDelta | InputJsonDelta | ThinkingDelta | SignatureDelta


class ContentBlockStop(msgspec.Struct, frozen=True, tag="content_block_stop"):
    """The block is whole."""

    index: int


class StopDelta(msgspec.Struct, frozen=True, kw_only=True):
    """How the message ended."""

    stop_reason: str
    stop_sequence: str | None
    stop_details: None = None
    container: None = None


class MessageDelta(msgspec.Struct, frozen=True, tag="message_delta"):
    """The message's end and its usage."""

    delta: StopDelta
    usage: AnthropicUsage


class MessageStop(msgspec.Struct, frozen=True, tag="message_stop"):
    """Last event."""


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Nothing to say yet."""


EVENTS: tuple[type[msgspec.Struct], ...] = (
    MessageStart,
    ContentBlockStart,
    ContentBlockDelta,
    ContentBlockStop,
    MessageDelta,
    MessageStop,
    Ping,
)


class TokenCount(msgspec.Struct, frozen=True):
    """Number of tokens of a prompt."""

    input_tokens: int


class ErrorCode(msgspec.Struct, frozen=True, kw_only=True):
    """What a client may act on."""

    error_code: str
    unsupported: list[str]


class AnthropicErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong."""

    type: str
    """``invalid_request_error``, ``authentication_error``, ``permission_error``, ``not_found_error``,
    ``request_too_large``, ``rate_limit_error``, ``timeout_error``, ``overloaded_error`` or ``api_error``."""
    message: str
    details: ErrorCode | UnsetType = UNSET
    """Where a conversation was to be kept (``thread_unsupported_request``): clients send all of it instead."""


class AnthropicError(msgspec.Struct, frozen=True, tag="error"):
    """Body of every answer that is not a success; also the last event of a stream that failed."""

    error: AnthropicErrorDetail
    request_id: str
