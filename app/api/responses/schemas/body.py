"""``POST /v1/responses``: what it takes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from app.api.fields import (
    MAX_ITEMS,
    MAX_STOP_LENGTH,
    MAX_TOKENS,
    Body,
    JsonObject,
    LogitBias,
    StopStrings,
    TemplateVariables,
    TimeLimit,
    TokenId,
    text_or_list,
)
from app.api.forms import FormFields
from app.api.responses.schemas.items import Id, Input

MAX_TOOLS = 128
_Key = Annotated[str, Field(max_length=64)]
_Stop = Annotated[str, Field(max_length=MAX_STOP_LENGTH)]
_ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]


def _choice_form(value: Any) -> str:
    return "text" if isinstance(value, str) else "list"


def _only_functions(value: Any) -> Any:
    """Says of a tool that OpenAI runs itself what is wrong with it, rather than which fields it lacks."""
    if isinstance(value, dict) and value.get("type") not in (None, "function"):
        kind = str(value["type"])[:64]
        message = "is a tool of the kind {kind}, which this server does not have: it knows functions alone"
        raise PydanticCustomError("tool_kind", message, {"kind": kind})
    return value


class FunctionTool(Body):
    """A function that the model may call. The server has no tools of its own."""

    type: Literal["function"]
    name: _ToolName
    description: str | None = None
    parameters: JsonObject | None = Field(None, description="JSON Schema of the arguments.")
    strict: bool | None = Field(None, description="Arguments are valid by the schema in any case.")


_Tool = Annotated[FunctionTool, BeforeValidator(_only_functions)]


class ToolName(Body):
    """A tool, by its name."""

    type: Literal["function"]
    name: _ToolName


class NamedChoice(Body):
    """One function that is to be called, or several that may be."""

    type: Literal["function", "allowed_tools"]
    name: _ToolName | None = None
    mode: Literal["none", "auto", "required"] | None = None
    tools: Annotated[list[ToolName], Field(fail_fast=True, min_length=1, max_length=MAX_TOOLS)] | None = None


class TextFormat(Body):
    """The form that the answer is bound to."""

    type: Literal["text", "json_object", "json_schema"]
    name: _Key | None = None
    description: str | None = None
    schema_: JsonObject | bool | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(Body):
    """How the text of the answer is to be."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description="A hint; named back.")


class ReasoningOptions(Body):
    """How the model is to think."""

    effort: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="Variable `reasoning_effort` of the chat template; `none`: no thought."
    )
    summary: Literal["auto", "concise", "detailed"] | None = Field(
        None, description="Named back: the thought itself is shown, and no summary made."
    )
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponsesStreamOptions(Body):
    """What a stream carries; nothing of it is heeded."""


class ResponsesBody(FormFields):
    """What the model is to answer. Sampling that is not given comes from the model's generation config."""

    model: str | None = Field(None, description="Name of the served model; may be left out.")
    input: Input | None = Field(None, description="A user's text, or items.")
    instructions: str | None = Field(None, description="A system message, for this answer alone.")
    previous_response_id: Id | None = Field(None, description="An answer that is kept, to go on from.")
    store: bool | None = Field(None, description="Keep the answer. Default true; the answer says whether it is kept.")
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    stream_options: ResponsesStreamOptions | None = None
    include: Annotated[list[Annotated[str, Field(max_length=128)]], Field(fail_fast=True, max_length=64)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = Field(
        None, description="Most tokens of the answer, reasoning included; all that fit when absent."
    )
    max_tool_calls: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = Field(
        None, description="1: one call at most, as without `parallel_tool_calls`. More is named back."
    )
    metadata: Annotated[dict[_Key, Annotated[str, Field(max_length=512)]], Field(max_length=16)] | None = None
    parallel_tool_calls: bool | None = None
    tools: Annotated[list[_Tool], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = None
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag("text")] | Annotated[NamedChoice, Tag("list")],
            Discriminator(_choice_form),
        ]
        | None
    ) = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="auto: where the context is too small, the oldest turns are left out. Default disabled."
    )
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(None, description="0 is greedy.")
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="0 is greedy.")
    top_logprobs: Annotated[int, Field(ge=0)] | None = Field(None, description="Alternatives reported for each token.")
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    background: bool | None = Field(None, description="Only false: answers are made while the client waits.")
    service_tier: Annotated[str, Field(max_length=64)] | None = Field(None, description="There is one: `default`.")
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None

    # Beyond OpenAI's: as chat has them.
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = Field(None, description="-1 or 0 keeps every token.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = Field(None, description="1 changes nothing.")
    logit_bias: LogitBias | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = Field(
        None, description="Same seed, same text, whatever else the server does."
    )
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    stop: (
        Annotated[Annotated[_Stop, Tag("text")] | Annotated[StopStrings, Tag("list")], Discriminator(text_or_list)]
        | None
    ) = None
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True, max_length=MAX_ITEMS)] | None = None
    ignore_eos: bool | None = None
    thinking_token_budget: Annotated[int, Field(ge=-1, le=MAX_TOKENS)] | None = Field(
        None, description="Most tokens of thought, after which it is closed; -1: no bound of its own."
    )
    chat_template: str | None = Field(
        None, description="Name of one of the model's chat templates, if not the usual one."
    )
    chat_template_kwargs: TemplateVariables | None = Field(None, description="Variables for the model's chat template.")
    timeout: TimeLimit = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = Field(None, description="Lower runs first.")
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="Cached prompt prefixes are shared only among requests with the same salt."
    )

    # What would change the answer and is not done.
    conversation: Any = Field(None, description="Refused: use `previous_response_id`.")
    prompt: Any = Field(None, description="Refused: there are no stored prompts.")
    context_management: Any = Field(None, description="Refused: nothing is compacted.")
