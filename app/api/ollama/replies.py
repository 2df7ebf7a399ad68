"""Replies as Ollama has them: text, thought, and calls that come whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from app.api.json import arguments_object
from app.api.ollama.schemas.answers import OllamaCalled, OllamaToolCall
from app.text.parsers.reply import CallDelta, Content, Reasoning, ReplyPart, ToolCall, WholePart


@dataclass(slots=True)
class LineReply:
    """What one line, or a whole answer, says."""

    content: str = ""
    thinking: str = ""
    calls: list[OllamaToolCall] = field(default_factory=list)


class PieceWriter:
    """Makes the pieces of lines of the parts of one reply. A call is held back until the next part shows it whole."""

    def __init__(self) -> None:
        self._call: ToolCall | None = None
        self._index = -1

    def push(self, parts: Iterable[ReplyPart]) -> list[LineReply]:
        """What the next parts say."""
        said: list[LineReply] = []
        for part in parts:
            match part:
                case CallDelta() if self._call is not None and part.index == self._index:
                    self._call.arguments += part.arguments
                case CallDelta():
                    said += self.end()
                    self._call, self._index = ToolCall(part.id, part.name, part.arguments), part.index
                case Content(text=text) if text:
                    said += [*self.end(), LineReply(content=text)]
                case Reasoning(text=text) if text:
                    said += [*self.end(), LineReply(thinking=text)]
        return said

    def end(self) -> list[LineReply]:
        """The call that was held back."""
        if self._call is None:
            return []
        call, self._call = self._call, None
        return [LineReply(calls=[_whole_call(self._index, call)])]


def whole_reply(parts: Sequence[WholePart]) -> LineReply:
    """What a whole answer says."""
    calls = [part for part in parts if isinstance(part, ToolCall)]
    return LineReply(
        content="".join(part.text for part in parts if isinstance(part, Content)),
        thinking="".join(part.text for part in parts if isinstance(part, Reasoning)),
        calls=[_whole_call(index, call) for index, call in enumerate(calls)],
    )


def _whole_call(index: int, call: ToolCall) -> OllamaToolCall:
    called = OllamaCalled(index=index, name=call.name, arguments=arguments_object(call.arguments))
    return OllamaToolCall(id=call.id, function=called)
