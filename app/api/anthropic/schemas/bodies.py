"""``/v1/messages`` and ``/v1/messages/count_tokens``: what they take."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from app.api.anthropic.schemas.blocks import CacheControl, InputMessages, Texts
from app.api.fields import MAX_ITEMS, MAX_TOKENS, Body, Part, StopStrings, type_tag

MAX_TOOLS = 1024
_MAX_SHOWN = 64


class InputTool(Part):
    """A tool that the client runs."""

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
    description: str | None = None
    input_schema: Annotated[
        dict[str, Any], Field(max_length=MAX_ITEMS, description="JSON Schema of the input, an object's.")
    ]
    strict: bool | None = Field(None, description="Inputs are valid by the schema whatever this says.")
    cache_control: CacheControl = None


def _is_custom(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != "custom":
        message = "is of type {kind}, which is not supported: only tools with an input_schema that the client runs are"
        raise PydanticCustomError("unsupported_tool", message, {"kind": repr(kind[:_MAX_SHOWN])})
    return value


class AutoChoice(Part):
    """The model decides whether to call a tool."""

    type: Literal["auto"]
    disable_parallel_tool_use: bool | None = Field(None, description="At most one call in an answer.")


class AnyChoice(Part):
    """The model calls some tool."""

    type: Literal["any"]
    disable_parallel_tool_use: bool | None = Field(None, description="Exactly one call in an answer.")


class NamedChoice(Part):
    """The model calls the tool of this name."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = Field(None, description="Exactly one call in an answer.")


class NoChoice(Part):
    """The model calls no tool."""

    type: Literal["none"]


InputChoice = Annotated[
    Annotated[AutoChoice, Tag("=auto")]
    | Annotated[AnyChoice, Tag("=any")]
    | Annotated[NamedChoice, Tag("=tool")]
    | Annotated[NoChoice, Tag("=none")],
    Discriminator(
        type_tag,
        custom_error_type="invalid_choice",
        custom_error_message="has to be an object with a type: auto, any, tool or none",
    ),
]
Display = Annotated[
    Literal["summarized", "omitted"] | None,
    Field(description="`omitted` leaves the text of thoughts out of the answer; else they come as they are."),
]


class ThinkingOn(Part):
    """The model thinks before it answers, where it can."""

    type: Literal["enabled"]
    budget_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] = Field(description="Most tokens of thought.")
    display: Display = None


class ThinkingAdaptive(Part):
    """The model thinks as much as it sees fit, where it can."""

    type: Literal["adaptive"]
    display: Display = None


class ThinkingOff(Part):
    """The model answers at once, where it can."""

    type: Literal["disabled"]


Thinking = Annotated[
    Annotated[ThinkingOn, Tag("=enabled")]
    | Annotated[ThinkingAdaptive, Tag("=adaptive")]
    | Annotated[ThinkingOff, Tag("=disabled")],
    Discriminator(
        type_tag,
        custom_error_type="invalid_thinking",
        custom_error_message="has to be an object with a type: enabled, adaptive or disabled",
    ),
]


class OutputFormat(Part):
    """A form that binds the answer's text."""

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema", max_length=MAX_ITEMS, description="JSON Schema of the text.")


class OutputConfig(Part):
    """How the answer is to look."""

    format: OutputFormat | None = None
    effort: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="The variable `reasoning_effort` of the chat template, where it reads one."
    )


class PromptBody(Body):
    """Fields that make the prompt."""

    model: str | None = Field(None, description="Name of the served model; may be left out.")
    messages: InputMessages
    system: Texts | None = None
    tools: (
        Annotated[list[Annotated[InputTool, BeforeValidator(_is_custom)]], Field(fail_fast=True, max_length=MAX_TOOLS)]
        | None
    ) = None
    tool_choice: InputChoice | None = None
    thinking: Thinking | None = Field(None, description="Off when absent, where the model's template can be told.")
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = Field(None, description="As `output_config.format`.")
    cache_control: CacheControl = None
    thread: Annotated[dict[str, Any], Field(max_length=8)] | None = Field(
        None, description="Refused: conversations are not kept, clients send all of them."
    )


class CountTokensBody(PromptBody):
    """A prompt whose tokens are to be counted."""


class MessagesBody(PromptBody):
    """A conversation to go on with."""

    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] = Field(
        description="Most tokens of the answer, thought included. Where the context holds fewer, an answer that is cut "
        "there says `model_context_window_exceeded`."
    )
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    stop_sequences: StopStrings | None = Field(None, description="Texts that end the answer and are not part of it.")
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(None, description="0 is greedy.")
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="0 is greedy.")
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = Field(None, description="-1 or 0 keeps every token.")
