"""``/v1/chat/completions``: what it takes, what it answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import Discriminator, Field, Tag

from app.api.fields import Body, JsonObject, TemplateVariables, text_or_list
from app.api.openai.schemas.generation import GenerationBody, PromptLogprobs
from app.api.openai.schemas.usage import Usage

MAX_MESSAGES = 8192
MAX_PARTS = 4096
"""Parts of a message."""

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


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
    ) = Field(None, description="May be null for an assistant's turn and for results of tools.")


Messages = Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]


MAX_FUNCTIONS = 1024
"""Functions that are read; :data:`app.tasks.reply.MAX_TOOLS` are honoured."""


class Prediction(Body):
    """What the answer will mostly be: a file of which a few lines change, say."""

    type: Literal["content"]
    content: Annotated[Annotated[str, Tag("text")] | Annotated[TextParts, Tag("list")], Discriminator(text_or_list)]


class FunctionDefinition(Body):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: JsonObject | None = Field(None, description="JSON Schema of its arguments; none when absent.")
    strict: bool | None = Field(None, description="Arguments are valid by the schema in any case.")


class FunctionTool(Body):
    """A tool. Only functions: the server has none of its own."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Body):
    """A function that is chosen."""

    name: str


class NamedTool(Body):
    """The one tool to call."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(Body):
    """The tools of which some may, or one must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(fail_fast=True, min_length=1, max_length=MAX_FUNCTIONS)]


class AllowedToolsChoice(Body):
    """A choice among some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _kind_of_choice(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "mode" if isinstance(value, str) else "allowed" if kind == "allowed_tools" else "named"


ToolChoiceField = Annotated[
    Annotated[Literal["none", "auto", "required", "any"], Tag("mode")]
    | Annotated[NamedTool, Tag("named")]
    | Annotated[AllowedToolsChoice, Tag("allowed")],
    Discriminator(_kind_of_choice),
]
Functions = Annotated[list[FunctionDefinition], Field(fail_fast=True, max_length=MAX_FUNCTIONS)]
ThoughtBudget = Annotated[int, Field(ge=-1, lt=2**31)] | None


class ChatBody(GenerationBody):
    """A conversation to go on with."""

    messages: Messages
    logprobs: bool | None = Field(None, description="Report the log-probability of each token.")
    top_logprobs: Annotated[int, Field(ge=0)] | None = Field(None, description="Alternatives reported for each token.")
    echo: bool | None = Field(None, description="Begin the answer with the last message, if it is the assistant's.")
    add_generation_prompt: bool | None = Field(None, description="Open the assistant's turn. Default true.")
    continue_final_message: bool | None = Field(None, description="Go on with the last message instead.")
    chat_template: str | None = Field(
        None, description="Name of one of the model's chat templates, if not the usual one."
    )
    chat_template_kwargs: TemplateVariables | None = Field(None, description="Variables for the model's chat template.")
    reasoning_effort: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="The variable of this name, where the chat template reads one; `none` for no thought."
    )
    tools: Annotated[list[FunctionTool], Field(fail_fast=True, max_length=MAX_FUNCTIONS)] | None = Field(
        None, description="Functions that the model may call. Arguments are valid by their schemas in every mode."
    )
    tool_choice: ToolChoiceField | None = Field(None, description="Default auto. `any` is `required`.")
    parallel_tool_calls: bool | None = Field(None, description="Several calls in one answer. Default true.")
    functions: Functions | None = Field(None, description="The older name and form of `tools`.")
    function_call: Literal["none", "auto"] | FunctionName | None = Field(
        None, description="The older name and form of `tool_choice`."
    )
    prediction: Prediction | None = Field(
        None,
        description="What the answer will mostly be. It changes no answer; where the server guesses ahead (`--draft`), "
        "what comes true comes sooner.",
    )
    include_reasoning: bool | None = Field(None, description="Show the model's thought. Default true.")
    enable_thinking: bool | None = Field(
        None, description="Let the model think, or not, where its chat template can be told."
    )
    thinking_token_budget: ThoughtBudget = Field(
        None, description="Most tokens of thought, after which it is closed and the answer comes; -1: no such bound."
    )
    thinking_budget: ThoughtBudget = Field(None, description="The same under another name.")
    thinking_budget_tokens: ThoughtBudget = Field(None, description="The same under another name.")
    reasoning_budget: ThoughtBudget = Field(None, description="The same under another name.")
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


class CalledFunction(msgspec.Struct, frozen=True, kw_only=True):
    """What is called; in a stream's chunks the name comes once, then the arguments piece by piece."""

    name: str | UnsetType = UNSET
    arguments: str
    """JSON of an object."""


class MessageToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a tool."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    """Null where there is nothing but calls or thought."""
    refusal: None = None
    annotations: list[Any] = msgspec.field(default_factory=list)
    """Always empty: nothing is cited."""
    reasoning_content: str | UnsetType = UNSET
    """The model's thought, if there is any."""
    reasoning: str | UnsetType = UNSET
    """The same."""
    tool_calls: list[MessageToolCall] | UnsetType = UNSET
    function_call: CalledFunction | UnsetType = UNSET
    """The call, when `functions` were given."""


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One of ``n`` answers."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    """``stop``, ``length``, ``tool_calls`` or ``function_call``."""
    token_ids: list[int] | UnsetType = UNSET
    """When asked for."""


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    """When asked for."""
    prompt_token_ids: list[int] | UnsetType = UNSET
    """When asked for."""


class DeltaToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """What a chunk adds to a call; id, type and name come once."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: CalledFunction


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """What a chunk adds to an answer; the role comes with the first text."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[DeltaToolCall] | UnsetType = UNSET
    function_call: CalledFunction | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """What a chunk says of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    """Null but in the answer's last chunk."""
    token_ids: list[int] | UnsetType = UNSET
    """When asked for, those of the chunk."""


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    """Empty in the chunk that carries the usage."""
    prompt_token_ids: list[int] | UnsetType = UNSET
    """In the first chunk, when asked for."""
    usage: Usage | UnsetType | None = UNSET
