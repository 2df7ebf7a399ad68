"""What the Responses protocol answers: items, the response object, events. Every field is there, nulls included."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]


class AlternativeToken(msgspec.Struct, frozen=True, kw_only=True):
    """An alternative to a token of the text."""

    token: str
    bytes: list[int]
    logprob: float


class TextToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token of the text, with the log-probability of the raw logits."""

    token: str
    bytes: list[int]
    logprob: float
    top_logprobs: list[AlternativeToken]


class OutputText(msgspec.Struct, kw_only=True, tag_field="type", tag="output_text"):
    """The text of a message."""

    text: str = ""
    annotations: list[Any] = msgspec.field(default_factory=list)
    """Always empty."""
    logprobs: list[TextToken] = msgspec.field(default_factory=list)
    """Empty where they were not asked for."""


class OutputMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="message"):
    """A message of the model."""

    id: str
    status: ItemStatus = "in_progress"
    role: Literal["assistant"] = "assistant"
    content: list[OutputText] = msgspec.field(default_factory=list)


class OutputCall(msgspec.Struct, kw_only=True, tag_field="type", tag="function_call"):
    """A call of a function."""

    id: str
    call_id: str
    name: str
    arguments: str = ""
    """JSON of an object; cut short where the answer was."""
    status: ItemStatus = "in_progress"


class ReasoningText(msgspec.Struct, kw_only=True, tag_field="type", tag="reasoning_text"):
    """A stretch of thought."""

    text: str = ""


class OutputReasoning(msgspec.Struct, kw_only=True, tag_field="type", tag="reasoning"):
    """What the model thought."""

    id: str
    summary: list[Any] = msgspec.field(default_factory=list)
    """Always empty: the thought itself is shown."""
    content: list[ReasoningText] = msgspec.field(default_factory=list)
    status: ItemStatus = "in_progress"


OutputItem = OutputMessage | OutputCall | OutputReasoning


class InputTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Where input tokens came from."""

    cached_tokens: int
    cache_write_tokens: int = 0
    """Tokens that were written to a cache for a price of their own: always 0, as what is cached costs nothing."""


class OutputTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """What output tokens were for."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of a request and its answer."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseFailure(msgspec.Struct, frozen=True, kw_only=True):
    """Why an answer failed, or was cancelled."""

    code: str
    message: str


class IncompleteDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Why an answer is cut short."""

    reason: str
    """``max_output_tokens``: that many tokens were made, or the context is full."""


class ResponseObject(msgspec.Struct, kw_only=True):
    """An answer, with what was asked for."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: ResponseStatus
    completed_at: int | None
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    model: str
    previous_response_id: str | None
    instructions: str | None
    output: list[OutputItem]
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    truncation: Literal["auto", "disabled"]
    parallel_tool_calls: bool
    text: dict[str, Any]
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    top_logprobs: int
    temperature: float
    reasoning: dict[str, Any]
    usage: ResponseUsage | None
    """Null until the answer has ended."""
    max_output_tokens: int | None
    max_tool_calls: int | None
    store: bool
    """Whether the answer is kept."""
    background: bool = False
    service_tier: str = "default"
    metadata: dict[str, str]
    safety_identifier: str | None
    prompt_cache_key: str | None
    user: str | UnsetType = UNSET
    """Only where it was given."""


class ResponsesErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ResponsesError(msgspec.Struct, frozen=True):
    """Body of every answer that is not a success."""

    error: ResponsesErrorDetail


class ResponseEvent(msgspec.Struct, kw_only=True):
    """One event of a stream; which fields it has depends on its type."""

    type: str
    """``response.created``, ``response.output_text.delta``, …; the name of the server-sent event, too."""
    sequence_number: int = 0
    response: ResponseObject | UnsetType = UNSET
    item_id: str | UnsetType = UNSET
    output_index: int | UnsetType = UNSET
    content_index: int | UnsetType = UNSET
    item: OutputItem | UnsetType = UNSET
    part: OutputText | ReasoningText | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    logprobs: list[TextToken] | UnsetType = UNSET
    error: ResponsesErrorDetail | UnsetType = UNSET
    message: str | UnsetType = UNSET
    param: str | UnsetType | None = UNSET
    code: str | UnsetType | None = UNSET


class ItemList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the items that an answer was made from."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedResponse(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that is gone."""

    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class InputTokens(msgspec.Struct, frozen=True, kw_only=True):
    """How many tokens a request would be read as."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int
