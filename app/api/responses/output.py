"""The items of an answer as they grow, and the events that tell of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from app.api.json import finite
from app.api.responses.items import item_id
from app.api.responses.schemas.answer import (
    AlternativeToken,
    ItemStatus,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningText,
    ResponseEvent,
    TextToken,
)
from app.serving.types import TokenLogprob
from app.text.parsers.reply import CallDelta, Content, Reasoning, ReplyPart

P = TypeVar("P", OutputText, ReasoningText)


class Output:
    """The items of one answer, made of the parts of the model's reply in their order.

    Args:
        emit: takes each event at the moment at which it holds; what it refers to grows afterwards.
    """

    def __init__(self, response_id: str, emit: Callable[[ResponseEvent], None]) -> None:
        self.items: list[OutputItem] = []
        self._response_id = response_id
        self._emit = emit
        self._is_open = False
        self._call = -1
        """Number of the call that the last item is, where it is one."""

    def add(self, part: ReplyPart, tokens: Sequence[TokenLogprob] = ()) -> None:
        """Adds the reply's next part.

        Args:
            tokens: the tokens that the part came with, and perhaps its neighbours; those of text are noted.
        """
        match part:
            case Content() if part.text:
                self._add_text(part.text, tokens)
            case Reasoning() if part.text:
                self._add_reasoning(part.text)
            case CallDelta():
                self._add_call(part)
            case _:
                pass

    def close(self, status: ItemStatus) -> None:
        """Ends the last item, if it goes on; an answer of no items becomes one of an empty message."""
        if not self.items and status == "completed":
            self._open_message()
        if not self._is_open:
            return
        self._is_open = False
        item = self.items[-1]
        item.status = status
        match item:
            case OutputMessage(content=[part]):
                self._emit(self._event("response.output_text.done", part, text=part.text, logprobs=part.logprobs))
                self._emit(self._event("response.content_part.done", part, part=part))
            case OutputReasoning(content=[thought]):
                self._emit(self._event("response.reasoning_text.done", thought, text=thought.text))
                self._emit(self._event("response.content_part.done", thought, part=thought))
            case OutputCall():
                done = "response.function_call_arguments.done"
                self._emit(self._event(done, name=item.name, arguments=item.arguments))
        self._emit(ResponseEvent(type="response.output_item.done", output_index=len(self.items) - 1, item=item))

    def _add_text(self, text: str, tokens: Sequence[TokenLogprob]) -> None:
        part = self._open_message()
        part.text += text
        logprobs = [_text_token(token) for token in tokens_of(text, tokens)]
        part.logprobs += logprobs
        self._emit(self._event("response.output_text.delta", part, delta=text, logprobs=logprobs))

    def _add_reasoning(self, text: str) -> None:
        item = self.items[-1] if self._is_open else None
        if not isinstance(item, OutputReasoning):
            item = OutputReasoning(id=self._next_id("reasoning"))
            self._open(item)
            self._add_part(item.content, ReasoningText())
        item.content[0].text += text
        self._emit(self._event("response.reasoning_text.delta", item.content[0], delta=text))

    def _add_call(self, part: CallDelta) -> None:
        item = self.items[-1] if self._is_open else None
        if not isinstance(item, OutputCall) or self._call != part.index:
            item = OutputCall(id=self._next_id("function_call"), call_id=part.id, name=part.name)
            self._open(item)
            self._call = part.index
        if part.arguments:
            item.arguments += part.arguments
            self._emit(self._event("response.function_call_arguments.delta", delta=part.arguments))

    def _open_message(self) -> OutputText:
        item = self.items[-1] if self._is_open else None
        if not isinstance(item, OutputMessage):
            item = OutputMessage(id=self._next_id("message"))
            self._open(item)
            self._add_part(item.content, OutputText())
        return item.content[0]

    def _next_id(self, kind: str) -> str:
        if self._is_open:
            self.close("completed")
        return item_id(kind, self._response_id, len(self.items))

    def _open(self, item: OutputItem) -> None:
        self.items.append(item)
        self._is_open = True
        self._emit(ResponseEvent(type="response.output_item.added", output_index=len(self.items) - 1, item=item))

    def _add_part(self, content: list[P], part: P) -> None:
        self._emit(self._event("response.content_part.added", part, part=part))
        content.append(part)

    def _event(self, kind: str, part: OutputText | ReasoningText | None = None, /, **fields: object) -> ResponseEvent:
        """An event about the last item, or about its one part."""
        event = ResponseEvent(type=kind, item_id=self.items[-1].id, output_index=len(self.items) - 1)
        if part is not None:
            event.content_index = 0
        for name, value in fields.items():
            setattr(event, name, value)
        return event


def tokens_of(text: str, tokens: Sequence[TokenLogprob]) -> Sequence[TokenLogprob]:
    """Those of a reply's tokens that a piece of it is made of: all of them, where nothing else is.

    A token that ends the reply, or is part of something that is no text, is not among them.
    """
    start = b"".join(token.bytes for token in tokens).find(text.encode())
    if start < 0:
        return tokens
    end = start + len(text.encode())
    chosen, position = [], 0
    for token in tokens:
        position, begin = position + len(token.bytes), position
        if begin < end and position > start:
            chosen.append(token)
    return chosen


def _text_token(token: TokenLogprob) -> TextToken:
    top = [
        AlternativeToken(token=other.text, bytes=list(other.bytes), logprob=finite(other.logprob))
        for other in token.top
    ]
    return TextToken(token=token.text, bytes=list(token.bytes), logprob=finite(token.logprob), top_logprobs=top)
