"""The formats of tool calls, a row each, and how a model's is found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from app.text.grammars.grammar import Grammar
from app.text.parsers.deepseek import DeepSeekBare, DeepSeekFenced
from app.text.parsers.format import (
    CallFormat,
    ModelFacts,
    Opened,
    Schemas,
    StepsParser,
    ThoughtFormat,
    Wanted,
    read_content,
)
from app.text.parsers.gemma import FunctionGemmaCalls, Gemma4Calls
from app.text.parsers.generic import GenericCalls
from app.text.parsers.glm import GlmCalls
from app.text.parsers.harmony import HarmonyCalls
from app.text.parsers.hermes import HermesCalls
from app.text.parsers.lark import ANY_TEXT, Lark, Tokens, escaped
from app.text.parsers.llama3 import Llama3Calls
from app.text.parsers.mistral import MistralArray, MistralNamed
from app.text.parsers.pythonic import BareCalls, Lfm2Calls
from app.text.parsers.qwen_coder import QwenCoderCalls
from app.text.parsers.reader import Reader, Steps
from app.text.parsers.reply import ReplyParser
from app.text.parsers.sink import Sink, call_id, short_call_id
from app.text.parsers.thoughts import THOUGHTS

FORMATS: tuple[CallFormat, ...] = (
    HarmonyCalls(),
    Gemma4Calls(),
    FunctionGemmaCalls(),
    QwenCoderCalls(),
    GlmCalls(),
    DeepSeekFenced(),
    DeepSeekBare(),
    MistralNamed(),
    MistralArray(),
    Lfm2Calls(),
    HermesCalls(),
    BareCalls(),
    Llama3Calls(),
    GenericCalls(),
)
"""The first that recognises a model is its."""
TOOL_FORMATS = tuple(each.name for each in FORMATS)
REASONING_FORMATS = tuple(each.name for each in THOUGHTS)
AUTO, NONE = "auto", "none"
_SPACE = r"[ \n]{0,4}"


@dataclass(frozen=True, slots=True)
class ReplyFormat:
    """How one model's replies are made."""

    calls: CallFormat
    thought: ThoughtFormat | None
    short_ids: bool = False
    """Ids of calls are nine letters and digits."""

    @property
    def thinks(self) -> bool:
        """Whether a reply may hold thought."""
        return self.thought is not None or self.calls.marks_thought

    def opened(self, prompt: str, continued: str = "") -> Opened:
        """Where a prompt leaves the thought, by its end.

        Args:
            continued: the reply so far, where it is to be continued.
        """
        if self.thought is None:
            return Opened.NOT
        _, opening, begun = continued.rpartition(self.thought.opening)
        if opening:
            return Opened.OVER if self.thought.closing in begun else Opened.YES
        end = prompt.rstrip()
        if end.endswith(self.thought.opening):
            return Opened.YES
        return Opened.OVER if end.endswith(self.thought.closing) else Opened.NOT

    def tells(self, tools: Schemas) -> bool:
        """Whether there is anything to tell apart in a reply that may call these tools."""
        return bool(tools) or self.thinks

    def parser(self, tools: Schemas, opened: Opened, tokens: Tokens | None = None) -> ReplyParser:
        """A parser of one reply.

        Args:
            tools: those that may be called; without any, nothing is taken for a call.
            tokens: the model's tokenizer, whose control tokens do not become part of a reply.
        """
        calls = self.calls if tools or self.calls.marks_thought else None

        def steps(reader: Reader, sink: Sink) -> Steps[None]:
            if self.thought is not None:
                yield from self.thought.read(reader, sink, opened=opened is Opened.YES)
            if calls is not None:
                yield from calls.read(reader, sink, tools)
            yield from read_content(reader, sink, [])

        shown = (*(self.thought.control if self.thought else ()), *(calls.control if calls else ()))
        hidden = [text for text in shown if tokens is not None and tokens.control_token_id(text) is not None]
        new_id = short_call_id if self.short_ids else call_id
        sink = Sink(new_id, holds_space=bool(tools), hidden=hidden)
        return StepsParser(steps, sink, shown)

    def grammar(self, wanted: Wanted, tokens: Tokens) -> Grammar | None:
        """What a reply has to match; None where nothing binds it.

        Raises:
            RequestError: 400, a tool's schema has what the format cannot be held to.
        """
        budget = wanted.budget if self.thinks and wanted.opened is not Opened.OVER else None
        if not wanted.tools and budget is None and (wanted.form is None or not self.thinks):
            return wanted.form
        lark = Lark(tokens)
        whole = self.calls.reply_grammar(lark, wanted)
        if whole is None:
            whole = self._thought_first(lark, wanted)
        return lark.grammar(whole)

    def _thought_first(self, lark: Lark, wanted: Wanted) -> str:
        thought = self.thought
        if thought is None or wanted.opened is Opened.OVER:
            return self._body(lark, wanted, not_first="")
        bound = wanted.form is not None or wanted.required
        space = lark.pattern("SPACE", _SPACE) if bound else ""
        if wanted.budget == 0:
            closing = f"{lark.marker(thought.closing)} {space}" if wanted.opened is Opened.YES else ""
            return f"{closing} {self._body(lark, wanted, not_first=self._text_opening(lark))}"
        if wanted.budget is None:
            rest = lark.text_until("thought", thought.closing)
        else:
            rest = lark.bounded_until("thought", thought.closing, wanted.budget)
        if wanted.opened is Opened.YES:
            return f"{rest} {space} {self._body(lark, wanted, not_first='')}"
        thinking = f"{_opening(lark, thought)} {rest} {space} {self._body(lark, wanted, not_first='')}"
        return f"{thinking} | {self._body(lark, wanted, not_first=self._text_opening(lark))}"

    def _text_opening(self, lark: Lark) -> str:
        """The beginning of a thought, where it is text that content may not begin with."""
        thought = self.thought
        if thought is None or any(lark.is_control(each) for each in (thought.opening, *thought.control)):
            return ""
        return thought.opening

    def _body(self, lark: Lark, wanted: Wanted, *, not_first: str) -> str:
        """Text, calls, or both.

        Args:
            not_first: text that it may not begin with.
        """
        if not wanted.tools:
            return wanted.answer(lark) if wanted.form else _text(lark, not_first, "")
        calls = self.calls
        behind = calls.grammar(lark, wanted.tools, parallel=wanted.parallel)
        first = f"{lark.marker(calls.trigger)} {behind}" if calls.trigger else behind
        if wanted.required:
            return first
        if wanted.form is not None:
            return f"({first} | {wanted.answer(lark)})"
        if not calls.trigger:
            # White space first, so that a call behind it is still told from text.
            text = _text(lark, not_first, rf"^[ \n]|{calls.begins}")
            return f"{lark.pattern('SPACE', _SPACE)} ({first} | {text})"
        if lark.is_control(calls.trigger):
            return f"{_text(lark, not_first, '')} ({first})?"
        head = lark.text_until("head", calls.trigger, _text(lark, not_first, ""))
        return f"({_text(lark, not_first, escaped(calls.trigger))} | {head} {behind})"


def _opening(lark: Lark, thought: ThoughtFormat) -> str:
    """Lark expression of the beginning of a thought, of which a part may be a control token."""
    for marker in thought.control:
        if lark.is_control(marker) and thought.opening.startswith(marker):
            rest = thought.opening.removeprefix(marker)
            space = lark.pattern("LEADING", r"[ \n]{0,2}")
            return f"{space} {lark.marker(marker)} {lark.text(rest) if rest else ''}"
    return lark.pattern("OPENING", rf"[ \n]{{0,2}}{escaped(thought.opening)}")


def _text(lark: Lark, not_first: str, without: str) -> str:
    """A terminal for text.

    Args:
        not_first: what it may not begin with.
        without: regular expression that it may not match anywhere, or with ``^``, not at its beginning.
    """
    expression = f"/{ANY_TEXT}/"
    if not_first:
        expression += f" & ~/\\s*{escaped(not_first)}{ANY_TEXT}/"
    if without.startswith("^"):
        expression += f" & ~/(?:{without[1:]}){ANY_TEXT}/"
    elif without:
        expression += f" & ~/{ANY_TEXT}{without}{ANY_TEXT}/"
    return lark.terminal("TEXT", expression)


def find_format(facts: ModelFacts, *, tool_format: str = AUTO, reasoning_format: str = AUTO) -> ReplyFormat:
    """A model's format.

    Args:
        tool_format: name of its format of calls, if it is not to be found.
        reasoning_format: name of its form of thought, or ``none``, likewise.

    Raises:
        ValueError: there is none of such a name.
    """
    calls = _find(FORMATS, tool_format, facts)
    if calls is None:
        raise ValueError(f"there is no tool format {tool_format!r}; there are {', '.join(TOOL_FORMATS)}")
    thought = None
    if reasoning_format not in (AUTO, NONE, *REASONING_FORMATS):
        raise ValueError(f"there is no reasoning format {reasoning_format!r}; there are {', '.join(REASONING_FORMATS)}")
    if reasoning_format != NONE and not calls.marks_thought:
        thought = _find(THOUGHTS, reasoning_format, facts)
    return ReplyFormat(calls, thought, short_ids="!= 9" in facts.template or "== 9" in facts.template)


class _Recognising(Protocol):
    @property
    def name(self) -> str: ...

    def recognises(self, facts: ModelFacts) -> bool: ...


_R = TypeVar("_R", bound=_Recognising)


def _find(table: Iterable[_R], name: str, facts: ModelFacts) -> _R | None:
    if name != AUTO:
        return next((each for each in table if each.name == name), None)
    return next((each for each in table if each.recognises(facts)), None)
