"""``/v1/chat/completions``: what it takes, what it answers."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import Discriminator, Field, Tag

from app.api.fields import MAX_TOKENS, Body, TemplateVariables, text_or_list
from app.api.openai.schemas.generation import GenerationBody
from app.api.openai.schemas.usage import Usage

MAX_MESSAGES = 8192
MAX_PARTS = 4096
"""Parts of a message."""

Role = Literal["system", "developer", "user", "assistant"]


class TextPart(Body):
    """A piece of a message. Only text: the model sees no images and hears nothing."""

    type: Literal["text"]
    text: str


TextParts = Annotated[list[TextPart], Field(fail_fast=True, max_length=MAX_PARTS)]


class Message(Body):
    """One turn of the conversation; fields beyond these go to the chat template as they are."""

    role: Role
    content: (
        Annotated[Annotated[str, Tag("text")] | Annotated[TextParts, Tag("list")], Discriminator(text_or_list)] | None
    ) = Field(None, description="May be null only for an assistant's turn.")


Messages = Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]


class ChatBody(GenerationBody):
    """A conversation to go on with."""

    messages: Messages
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = Field(
        None, description="Most tokens of an answer; what fits the context when absent."
    )
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = Field(
        None, description="Older name of `max_completion_tokens`, which wins."
    )
    logprobs: bool | None = Field(None, description="Report the log-probability of each token.")
    top_logprobs: Annotated[int, Field(ge=0)] | None = Field(None, description="Alternatives reported for each token.")
    add_generation_prompt: bool | None = Field(None, description="Open the assistant's turn. Default true.")
    continue_final_message: bool | None = Field(None, description="Go on with the last message instead.")
    chat_template_kwargs: TemplateVariables | None = Field(None, description="Variables for the model's chat template.")
    parse_special: Literal[False] | None = Field(
        None, description="Control tokens that messages spell are always text."
    )


class TopLogprob(msgspec.Struct, frozen=True):
    """An alternative."""

    token: str
    bytes: list[int]
    logprob: float


class ChatLogprob(msgspec.Struct, frozen=True):
    """A token of the answer."""

    token: str
    bytes: list[int]
    logprob: float
    top_logprobs: list[TopLogprob]
    """As many as were asked for, most likely first."""


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Log-probabilities of the raw logits, before temperature and penalties."""

    content: list[ChatLogprob]
    refusal: None = None


class AssistantMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One of ``n`` answers."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    """``stop`` or ``length``."""


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """What a chunk adds to an answer; the role comes with the first text."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """What a chunk says of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    """Null but in the answer's last chunk."""


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    """Empty in the chunk that carries the usage."""
    usage: Usage | UnsetType | None = UNSET
