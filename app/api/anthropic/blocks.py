"""Replies as content blocks: a stream's events, or whole blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import msgspec

from app.api.anthropic.schemas.answers import (
    AnthropicBlock,
    AnthropicText,
    AnthropicThinking,
    AnthropicToolUse,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    InputJsonDelta,
    SignatureDelta,
    TextDelta,
    ThinkingDelta,
)
from app.api.json import arguments_object
from app.text.parsers.reply import CallDelta, Content, Reasoning, ReplyPart, WholePart


class BlockStream:
    """Makes a stream's events of the parts of one reply: each text, thought and call is a block of its own.

    Args:
        hides_thought: leave the text of thoughts out.
    """

    def __init__(self, *, hides_thought: bool) -> None:
        self._hides_thought = hides_thought
        self._index = -1
        self._open: type[ReplyPart] | None = None
        self._call = -1
        """Number of the call that the open block is of, or that the last one was of."""
        self._digest = hashlib.sha256()

    def push(self, part: ReplyPart) -> Iterator[msgspec.Struct]:
        """The events for the reply's next part."""
        match part:
            case Content(text=text) if text:
                if self._open is not Content:
                    yield from self._begin(Content, AnthropicText(text=""))
                yield ContentBlockDelta(self._index, TextDelta(text))
            case Reasoning(text=text) if text:
                if self._open is not Reasoning:
                    self._digest = hashlib.sha256()
                    yield from self._begin(Reasoning, AnthropicThinking(thinking="", signature=""))
                self._digest.update(text.encode("utf-8", "surrogatepass"))
                if not self._hides_thought:
                    yield ContentBlockDelta(self._index, ThinkingDelta(text))
            case CallDelta(index=index, id=id_, name=name, arguments=arguments):
                if self._open is not CallDelta or index != self._call:
                    self._call = index
                    yield from self._begin(CallDelta, AnthropicToolUse(id=id_, name=name, input={}))
                if arguments:
                    yield ContentBlockDelta(self._index, InputJsonDelta(arguments))

    def end(self) -> Iterator[msgspec.Struct]:
        """The events that close the open block."""
        if self._open is None:
            return
        if self._open is Reasoning:
            yield ContentBlockDelta(self._index, SignatureDelta(self._digest.hexdigest()))
        self._open = None
        yield ContentBlockStop(self._index)

    def _begin(self, kind: type[ReplyPart], block: AnthropicBlock) -> Iterator[msgspec.Struct]:
        yield from self.end()
        self._open = kind
        self._index += 1
        yield ContentBlockStart(self._index, block)


def whole_blocks(parts: Iterable[WholePart], *, hides_thought: bool) -> list[AnthropicBlock]:
    """A whole reply's blocks."""
    return [_block(part, hides_thought=hides_thought) for part in parts]


def _block(part: WholePart, *, hides_thought: bool) -> AnthropicBlock:
    match part:
        case Content(text=text):
            return AnthropicText(text=text)
        case Reasoning(text=text):
            signature = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
            return AnthropicThinking(thinking="" if hides_thought else text, signature=signature)
        case _:
            return AnthropicToolUse(id=part.id, name=part.name, input=arguments_object(part.arguments))
