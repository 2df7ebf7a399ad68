"""Items that a request brings: messages, calls of functions and their outputs, reasoning, references."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from app.api.body import TAG
from app.api.fields import Body, text_or_list

MAX_ITEMS = 8192
"""Items of a conversation."""
MAX_PARTS = 4096
"""Parts of an item."""
MAX_ID = 256
"""Characters of an id."""

Id = Annotated[str, Field(min_length=1, max_length=MAX_ID)]
Status = Literal["in_progress", "completed", "incomplete"]


def _part_kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"{TAG}refusal" if kind == "refusal" else f"{TAG}text"


def _item_kind(value: Any) -> str | None:
    if not isinstance(value, dict):
        kind = getattr(value, "type", None)
    else:
        kind = value.get("type") or ("message" if "role" in value else "item_reference")
    return f"{TAG}{kind}" if isinstance(kind, str) else None


class TextPart(Body):
    """A piece of text. Only text: the model sees no images and reads no files."""

    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"]
    text: str


class RefusalPart(Body):
    """A piece of a message in which an assistant refused."""

    type: Literal["refusal"]
    refusal: str


_KINDS = frozenset({*get_args(TextPart.model_fields["type"].annotation), "refusal"})


def _only_text(value: Any) -> Any:
    """Says of an image or a file that it is one, rather than which fields of a text it lacks."""
    if isinstance(value, dict) and isinstance(kind := value.get("type"), str) and kind not in _KINDS:
        message = "is a part of the kind {kind}: the model reads text alone"
        raise PydanticCustomError("part_kind", message, {"kind": kind[:64]})
    return value


Part = Annotated[
    Annotated[TextPart, Tag(f"{TAG}text")] | Annotated[RefusalPart, Tag(f"{TAG}refusal")],
    Discriminator(_part_kind),
    BeforeValidator(_only_text),
]
Parts = Annotated[list[Part], Field(fail_fast=True, max_length=MAX_PARTS)]
Texts = Annotated[list[Annotated[TextPart, BeforeValidator(_only_text)]], Field(fail_fast=True, max_length=MAX_PARTS)]
Content = Annotated[Annotated[str, Tag("text")] | Annotated[Parts, Tag("list")], Discriminator(text_or_list)]
Output = Annotated[Annotated[str, Tag("text")] | Annotated[Texts, Tag("list")], Discriminator(text_or_list)]


class InputMessage(Body):
    """One turn of the conversation."""

    type: Literal["message"] | None = None
    id: Id | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    status: Status | None = None


class InputCall(Body):
    """A call of a function that the model made."""

    type: Literal["function_call"]
    id: Id | None = None
    call_id: Id
    name: Id
    arguments: str
    status: Status | None = None


class InputCallOutput(Body):
    """What a called function gave."""

    type: Literal["function_call_output"]
    id: Id | None = None
    call_id: Id
    output: Output
    status: Status | None = None


class InputReasoning(Body):
    """What the model thought before."""

    type: Literal["reasoning"]
    id: Id | None = None
    summary: Texts | None = None
    content: Texts | None = None
    status: Status | None = None


class InputReference(Body):
    """An item of an answer that is kept, or of what that was asked with."""

    type: Literal["item_reference"] | None = None
    id: Id


Item = Annotated[
    Annotated[InputMessage, Tag(f"{TAG}message")]
    | Annotated[InputCall, Tag(f"{TAG}function_call")]
    | Annotated[InputCallOutput, Tag(f"{TAG}function_call_output")]
    | Annotated[InputReasoning, Tag(f"{TAG}reasoning")]
    | Annotated[InputReference, Tag(f"{TAG}item_reference")],
    Discriminator(
        _item_kind,
        custom_error_type="item_kind",
        custom_error_message="is no item that this server knows: message, function_call, function_call_output, "
        "reasoning or item_reference",
    ),
]
Items = Annotated[list[Item], Field(fail_fast=True, max_length=MAX_ITEMS)]
Input = Annotated[Annotated[str, Tag("text")] | Annotated[Items, Tag("list")], Discriminator(text_or_list)]
