"""What a format of tool calls, and one of thought, has to know. Each has a file of its own."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.text.grammars.grammar import Grammar
from app.text.parsers.lark import ANY_TEXT, Lark
from app.text.parsers.reader import Reader, Steps
from app.text.parsers.reply import CallDelta, Content, ReplyPart
from app.text.parsers.sink import Sink

Schemas = Mapping[str, Mapping[str, Any]]
"""JSON Schemas of the arguments of tools, by the tools' names."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What tells a model's formats."""

    template: str
    """Source of its chat template, of that for tools if there is one."""
    reads_tools: bool
    """The template has a place for tools."""
    has_token: Callable[[str], bool]
    """Whether a text is one token of the tokenizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtFormat:
    """How a model marks its thought, which comes first in a reply."""

    name: str
    opening: str
    """Text that begins a thought; what a prompt ends with if the model is to go on thinking."""
    closing: str
    tells: tuple[str, ...]
    """Texts of which a template has one if the model thinks in this form."""
    control: tuple[str, ...] = ()
    """Control tokens in the two texts."""

    def recognises(self, facts: ModelFacts) -> bool:
        """Whether a model thinks in this form."""
        return any(text in facts.template for text in self.tells)

    def read(self, reader: Reader, sink: Sink, *, opened: bool) -> Steps[None]:
        """Reads the thought that a reply begins with, if it does.

        Args:
            opened: the prompt has begun it.
        """
        if not opened:
            space = yield from reader.spaces()
            if not (yield from reader.literal(self.opening)):
                sink.content(space)
                return
        sink.begin_thought()
        if (yield from reader.until([self.closing], sink.thought)):
            sink.end_thought()


class Opened(enum.Enum):
    """Where the prompt leaves the thought."""

    NOT = enum.auto()
    """The model begins one, or not."""
    YES = enum.auto()
    """The prompt has begun it."""
    OVER = enum.auto()
    """The prompt has closed it: there is to be none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a reply is to be bound to."""

    tools: Schemas = field(default_factory=dict)
    """Those that may be called."""
    required: bool = False
    """One has to be called."""
    parallel: bool = True
    """Several may be called."""
    form: Grammar | None = None
    """What an answer in words has to match."""
    opened: Opened = Opened.NOT
    budget: int | None = None
    """Most tokens of thought."""

    def answer(self, lark: Lark) -> str:
        """Lark expression of an answer in words."""
        if self.form is None:
            return lark.pattern("ANY", ANY_TEXT)
        lark.parts |= {**self.form.parts, ANSWER: self.form.main}
        return f"@{ANSWER}"


ANSWER = "answer"
"""Name of the grammar of an answer in words."""


class CallFormat(ABC):
    """How a model calls tools.

    Most formats mark where calls begin: there is a ``trigger``, which content never holds. Without one a call is known
    by how the whole answer begins.
    """

    name: str
    trigger: str = ""
    """Text with which the first call begins."""
    begins: str = ""
    """Without a trigger: regular expression of what an answer of calls begins with."""
    control: tuple[str, ...] = ()
    """Texts of the format that are control tokens in some tokenizers."""
    described = False
    """The server tells the model of the tools, not the template."""
    marks_thought = False
    """:meth:`read` tells thought, too."""

    @abstractmethod
    def recognises(self, facts: ModelFacts) -> bool:
        """Whether a model has this format."""

    def read_calls(self, reader: Reader, sink: Sink, tools: Schemas) -> Steps[bool]:
        """Reads one call, or several that belong together, behind the trigger. Returns whether there was one."""
        del reader, sink, tools
        yield from ()
        return False

    @abstractmethod
    def grammar(self, lark: Lark, tools: Schemas, *, parallel: bool) -> str:
        """Lark expression of what follows the trigger: a call of one of the tools, or several."""

    def reply_grammar(self, lark: Lark, wanted: Wanted) -> str | None:
        """Lark expression of a whole reply; None for formats in which a thought comes first, then text, then calls."""
        del lark, wanted
        return None

    def read(self, reader: Reader, sink: Sink, tools: Schemas) -> Steps[None]:
        """Reads the reply behind the thought, to its end."""
        while (yield from read_content(reader, sink, [self.trigger])):
            reader.mark(len(self.trigger))
            called = yield from self.read_calls(reader, sink, tools)
            text = reader.since_mark()
            if not called:
                sink.no_call(text)


def read_content(reader: Reader, sink: Sink, markers: Sequence[str]) -> Steps[str]:
    """Reads content up to one of the markers, without control tokens. Returns the marker; nothing at the end."""
    while found := (yield from reader.until([*markers, *sink.hidden], sink.content)):
        if found in markers:
            return found
    return ""


class StepsParser:
    """A :class:`app.text.parsers.reply.ReplyParser` made of a generator that reads."""

    def __init__(self, steps: Callable[[Reader, Sink], Steps[None]], sink: Sink, shown: Sequence[str] = ()) -> None:
        """
        Args:
            shown: texts of control tokens that it has to see.
        """
        self._shown = frozenset(shown)
        self._reader, self._sink = Reader(), sink
        self._steps: Generator[None, None, None] | None = steps(self._reader, sink)
        self._run()

    @property
    def shown_tokens(self) -> frozenset[str]:
        """Texts of control tokens that it has to see."""
        return self._shown

    @property
    def in_reasoning(self) -> bool:
        """Whether the tokens that come now count as reasoning."""
        return self._sink.thinking

    def push(self, text: str) -> Sequence[ReplyPart]:
        """The parts that the next piece of text makes certain."""
        self._reader.feed(text)
        self._run()
        return self._sink.take()

    def flush(self) -> Sequence[ReplyPart]:
        """The parts that were held back, but for the beginning of a mark or of another call behind a call: a grammar
        lets no text follow calls."""
        called = self._sink.has_called
        self._reader.ended = True
        self._run()
        self._sink.end()
        kept: list[ReplyPart] = []
        for part in self._sink.take():
            called = called or isinstance(part, CallDelta)
            if not (called and isinstance(part, Content)):
                kept.append(part)
        return kept

    def _run(self) -> None:
        if self._steps is not None:
            try:
                next(self._steps)
            except StopIteration:
                self._steps = None
        if self._steps is None and (rest := self._reader.rest):
            self._reader.skip(len(rest))
            self._sink.content(rest)
