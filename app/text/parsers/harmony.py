"""Harmony, the form of gpt-oss: a reply is a row of messages, each in a channel. Thought is in ``analysis``, calls in
``commentary`` with a recipient, the answer in ``final``."""

from __future__ import annotations

import re

from app.text.parsers.format import CallFormat, ModelFacts, Schemas, Wanted, read_content
from app.text.parsers.json_calls import arguments_rule
from app.text.parsers.lark import ANY_TEXT, Lark
from app.text.parsers.reader import Reader, Steps
from app.text.parsers.sink import Sink

_START, _CHANNEL, _CONSTRAIN, _MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
_END, _CALL, _RETURN = "<|end|>", "<|call|>", "<|return|>"
_ENDS = (_END, _CALL, _RETURN, _START)
_IN_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([A-Za-z0-9_.-]+)")
_HEADER = re.compile(r"\s*(<\|start\|>|<\|channel\|>|to=)")
_MOST_MESSAGES = 16
"""Most messages of a constrained reply before its last."""


class HarmonyCalls(CallFormat):
    """The whole reply: what is thought, what is called and what is said."""

    name = "harmony"
    control = (_START, _CHANNEL, _CONSTRAIN, _MESSAGE, _END, _CALL, _RETURN)
    marks_thought = True

    def recognises(self, facts: ModelFacts) -> bool:
        """By the marks of channels and messages."""
        return _CHANNEL in facts.template and _MESSAGE in facts.template

    def read(self, reader: Reader, sink: Sink, tools: Schemas) -> Steps[None]:
        """Messages, to the reply's end. A text without a header is content."""
        while True:
            header: list[str] = []
            found = yield from reader.until([_MESSAGE], header.append)
            text = "".join(header)
            if not found:
                if not _HEADER.match(text) and text.strip() not in ("", "assistant"):
                    sink.no_call(text)
                return
            yield from self._read_message(reader, sink, tools, text)

    def _read_message(self, reader: Reader, sink: Sink, tools: Schemas, header: str) -> Steps[None]:
        channel = found[1] if (found := _IN_CHANNEL.search(header)) else "final"
        recipient: str | None = found[1] if (found := _RECIPIENT.search(header)) else None
        if recipient is not None and recipient in tools:
            sink.begin_call(recipient)
            end = yield from reader.until(_ENDS, sink.arguments)
            sink.end_call() if end or not reader.ended else sink.cut_call()
        elif channel == "analysis":
            sink.begin_thought()
            end = yield from reader.until(_ENDS, sink.thought)
            if end:
                sink.end_thought()
        else:
            yield from read_content(reader, sink, _ENDS)

    def grammar(self, lark: Lark, tools: Schemas, *, parallel: bool) -> str:
        """One call: the model stops behind it."""
        del parallel
        to = [self._call(lark, name, tools) for name in tools]
        return lark.one_of("call", to)

    def reply_grammar(self, lark: Lark, wanted: Wanted) -> str:
        """Thoughts and preambles, then a call or the answer."""
        message, channel = lark.marker(_MESSAGE), lark.marker(_CHANNEL)
        again = f'{lark.marker(_END)} {lark.marker(_START)} "assistant"'
        text = lark.pattern("ANY", ANY_TEXT)
        before = []
        if wanted.budget is None:
            before.append(f'{channel} "analysis" {message} {text} {again}')
        elif wanted.budget:
            thought = lark.bounded_until("thought", _END, wanted.budget)
            before.append(f'{channel} "analysis" {message} {thought} {lark.marker(_START)} "assistant"')
        ends = []
        if wanted.tools:
            ends.append(self.grammar(lark, wanted.tools, parallel=wanted.parallel))
            before.append(f'{channel} "commentary" {message} {text} {again}')
        if not wanted.required:
            ends.append(f'{channel} "final" {message} {wanted.answer(lark)}')
        # A budget is that of the whole thought: it comes in one message.
        most = _MOST_MESSAGES if wanted.budget is None else 1
        first = f"{lark.one_of('before', before)}{{0,{most}}}" if before else ""
        return f"{first} {lark.one_of('last', ends)}"

    def _call(self, lark: Lark, name: str, tools: Schemas) -> str:
        channel, message = lark.marker(_CHANNEL), lark.marker(_MESSAGE)
        kind = f'(/ ?/ ({lark.marker(_CONSTRAIN)})? "json")?'
        to = lark.text(f" to=functions.{name}")
        head = f'({channel} "commentary" {to} | {to} {channel} "commentary") {kind} {message}'
        return f"{head} {arguments_rule(lark, name, tools[name])}"
