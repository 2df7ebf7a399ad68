"""What an assistant's reply is made of, and how it is told apart while it comes: the same parser for streams and for
whole answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Content:
    """A piece of the text that the user sees."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of the model's thought."""

    text: str


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of a tool call. The first one of a call has its id and its name; the arguments are those of all joined:
    the JSON text of an object."""

    index: int
    """Number of the call in the reply, from 0 on."""
    id: str = ""
    name: str = ""
    arguments: str = ""


ReplyPart = Content | Reasoning | CallDelta


class ReplyParser(Protocol):
    """Tells the parts of one reply apart. A part that may still turn out to be another is held back."""

    @property
    def shown_tokens(self) -> frozenset[str]:
        """Texts of control tokens that it has to see; none of them becomes part of the reply."""

    @property
    def in_reasoning(self) -> bool:
        """Whether the tokens that come now count as reasoning."""

    def push(self, text: str) -> Sequence[ReplyPart]:
        """The parts that the next piece of the reply's text, its control tokens included, makes certain."""

    def flush(self) -> Sequence[ReplyPart]:
        """The parts that were held back, at the reply's end, wherever that is."""


@dataclass(slots=True)
class ToolCall:
    """A whole call of a tool."""

    id: str
    name: str
    arguments: str = ""
    """JSON text of an object; cut short where the reply was."""


WholePart = Content | Reasoning | ToolCall


def add_part(parts: list[WholePart], part: ReplyPart) -> None:
    """Joins the next part of a reply to those before it: neighbours of one kind, pieces of one call."""
    last = parts[-1] if parts else None
    match part:
        case Content() | Reasoning() if isinstance(last, type(part)):
            parts[-1] = type(part)(last.text + part.text)
        case Content() | Reasoning():
            parts.append(part)
        case CallDelta():
            calls = [each for each in parts if isinstance(each, ToolCall)]
            if part.index >= len(calls):
                parts.append(ToolCall(part.id, part.name, part.arguments))
            else:
                calls[part.index].arguments += part.arguments
