"""``<｜tool▁calls▁begin｜>`` and its kin: DeepSeek R1 and V3 (a fenced block of JSON a call), V3.1 (bare JSON)."""

from __future__ import annotations

import re

from app.text.parsers.format import CallFormat, ModelFacts, Schemas
from app.text.parsers.json_calls import arguments_rule
from app.text.parsers.lark import Lark
from app.text.parsers.reader import Reader, Steps
from app.text.parsers.sink import Sink

_BEGIN, _END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _END_CALL, _SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
_FENCE = "```"
_NAME = re.compile(r"[A-Za-z0-9_.-]{0,128}")


class DeepSeekCalls(CallFormat):
    """Both forms are read, whichever the model was trained on."""

    trigger = _BEGIN
    control = (_BEGIN, _END, _CALL, _END_CALL, _SEPARATOR)

    def read_calls(self, reader: Reader, sink: Sink, tools: Schemas) -> Steps[bool]:
        """All calls of the reply."""
        called = False
        while True:
            yield from reader.spaces()
            if not (yield from reader.literal(_CALL)):
                break
            if not (yield from self._read_call(reader, sink, tools)):
                return called
            called = True
        if called:
            yield from reader.literal(_END)
        return called

    def _read_call(self, reader: Reader, sink: Sink, tools: Schemas) -> Steps[bool]:
        name = yield from reader.matching(_NAME)
        if not (yield from reader.literal(_SEPARATOR)):
            return False
        yield from reader.spaces()
        if name == "function":  # the kind of tool: the name follows
            name = yield from reader.matching(_NAME)
            yield from reader.spaces()
        if name not in tools:
            return False
        if (yield from reader.literal(_FENCE + "json", _FENCE)):
            yield from reader.spaces()
        yield from reader.have(1)
        if not reader.rest.startswith("{") and not reader.ended:
            return False
        sink.begin_call(name)
        if not (yield from reader.json_value(sink.arguments)):
            sink.cut_call()
            return True
        sink.end_call()
        yield from reader.spaces()
        yield from reader.literal(_FENCE)
        yield from reader.spaces()
        yield from reader.literal(_END_CALL)
        return True

    def grammar(self, lark: Lark, tools: Schemas, *, parallel: bool) -> str:
        """Calls, and the end of all."""
        calls = [self._call(lark, name, tools) for name in tools]
        call = f"{lark.marker(_CALL)} {lark.one_of('call', calls)} {lark.marker(_END_CALL)}"
        more = f"(/\\n?/ {call})*" if parallel else ""
        return f"{call} {more} {lark.marker(_END)}"

    def _call(self, lark: Lark, name: str, tools: Schemas) -> str:
        raise NotImplementedError


class DeepSeekFenced(DeepSeekCalls):
    """``function<｜tool▁sep｜>NAME``, and the arguments in a fenced block."""

    name = "deepseek-v3"

    def recognises(self, facts: ModelFacts) -> bool:
        """By the marks, and the fence."""
        return _BEGIN in facts.template and _FENCE in facts.template

    def _call(self, lark: Lark, name: str, tools: Schemas) -> str:
        head = (
            f"{lark.text('function')} {lark.marker(_SEPARATOR)} {lark.text(f'{name}' + chr(10) + '```json' + chr(10))}"
        )
        return f"{head} {arguments_rule(lark, name, tools[name])} {lark.text(chr(10) + _FENCE)}"


class DeepSeekBare(DeepSeekCalls):
    """``NAME<｜tool▁sep｜>{…}``."""

    name = "deepseek-v3.1"

    def recognises(self, facts: ModelFacts) -> bool:
        """By the marks, without a fence."""
        return _BEGIN in facts.template and _FENCE not in facts.template

    def _call(self, lark: Lark, name: str, tools: Schemas) -> str:
        return f"{lark.text(name)} {lark.marker(_SEPARATOR)} {arguments_rule(lark, name, tools[name])}"
