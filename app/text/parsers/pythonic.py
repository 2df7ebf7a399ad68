"""Calls as Python writes them, ``[f(a=1, b="x")]``: LFM2 between marks, Llama 4 and others bare."""

from __future__ import annotations

import json
import re

from app.text.parsers.format import CallFormat, ModelFacts, Schemas, read_content
from app.text.parsers.json_calls import read_call_object
from app.text.parsers.lark import Lark
from app.text.parsers.literal_grammars import LiteralGrammar
from app.text.parsers.literals import PYTHON, literal_json, read_literal
from app.text.parsers.reader import Reader, Steps
from app.text.parsers.sink import Sink
from app.text.parsers.values import in_sequence, parameters

_NAME = re.compile(r"[A-Za-z0-9_.-]{0,128}")
_ARGUMENT = re.compile(r"[^\s=(),]{0,128}")


class PythonicCalls(CallFormat):
    """A list of calls with named arguments."""

    opening, closing = "", ""

    def read_calls(self, reader: Reader, sink: Sink, tools: Schemas) -> Steps[bool]:
        """One list. Calls before one that is none count."""
        yield from reader.spaces()
        listed = yield from reader.literal("[")
        called = False
        while True:
            yield from reader.spaces()
            yield from reader.have(1)
            if reader.rest.startswith("{"):  # the same as objects, as some templates show the past
                one = yield from read_call_object(reader, sink, tools)
            else:
                one = yield from self._read_call(reader, sink, tools)
            if not one:
                return called
            called = True
            yield from reader.spaces()
            if (yield from reader.literal(",", *(["]"] if listed else []))) != ",":
                break
        if self.closing:
            yield from reader.spaces()
            yield from reader.literal(self.closing)
        return True

    def grammar(self, lark: Lark, tools: Schemas, *, parallel: bool) -> str:
        """One list."""
        # One text up to the first argument: where calls have no trigger it tells them from content.
        firsts = lark.one_of("first_call", [self._call(lark, f"[{name}(", name, tools) for name in tools])
        call = lark.one_of("call", [self._call(lark, f"{name}(", name, tools) for name in tools])
        more = f" (/, ?/ {call})*" if parallel else ""
        return f'{firsts}{more} "]"'

    def _call(self, lark: Lark, opening: str, name: str, tools: Schemas) -> str:
        values = LiteralGrammar(lark, PYTHON)
        items = []
        for key, each, required in parameters(name, tools[name]):
            value = values.value(name, each, f"tools.{name}.parameters/properties/{key}")
            items.append((f"{lark.text(f'{key}=')} {value}", required))
        return f'{lark.text(opening)} {in_sequence(lark, "argument", items, "/, ?/")} ")"'

    def _read_call(self, reader: Reader, sink: Sink, tools: Schemas) -> Steps[bool]:
        name = yield from reader.matching(_NAME)
        if name not in tools or not (yield from reader.literal("(")):
            return False
        sink.begin_call(name)
        separator = "{"
        while True:
            yield from reader.spaces()
            if (yield from reader.literal(")")):
                sink.arguments("}" if separator == ", " else "")
                sink.end_call()
                return True
            key = yield from reader.matching(_ARGUMENT)
            text = None
            if key and (yield from reader.literal("=")):
                text = yield from read_literal(reader, PYTHON)
            value = literal_json(text, PYTHON) if text is not None else None
            if value is None:
                sink.cut_call()
                return True
            sink.arguments(f"{separator}{json.dumps(key)}: {value}")
            separator = ", "
            yield from reader.spaces()
            yield from reader.literal(",")


class Lfm2Calls(PythonicCalls):
    """Between marks that are control tokens."""

    name = "lfm2"
    trigger = "<|tool_call_start|>"
    closing = "<|tool_call_end|>"
    control = (trigger, closing)

    def recognises(self, facts: ModelFacts) -> bool:
        """By the mark, or by its token: older templates leave it out."""
        return self.trigger in facts.template or ("List of tools: " in facts.template and facts.has_token(self.trigger))

    def grammar(self, lark: Lark, tools: Schemas, *, parallel: bool) -> str:
        """A list, and the closing mark."""
        return f"{super().grammar(lark, tools, parallel=parallel)} {lark.marker(self.closing)}"


class BareCalls(PythonicCalls):
    """The whole answer, sometimes between ``<|python_start|>`` and ``<|python_end|>``."""

    name = "pythonic"
    begins = r"\[[A-Za-z_][A-Za-z0-9_.-]*\("
    closing = "<|python_end|>"
    control = ("<|python_start|>", closing)

    def recognises(self, facts: ModelFacts) -> bool:
        """By the mark, or by what the template tells the model to answer with."""
        return "<|python_start|>" in facts.template or "[func_name1(params_name1=" in facts.template

    def read(self, reader: Reader, sink: Sink, tools: Schemas) -> Steps[None]:
        """Calls if the answer begins with them; all else is content."""
        reader.mark()
        yield from reader.spaces()
        yield from reader.literal("<|python_start|>")
        called = yield from self.read_calls(reader, sink, tools)
        text = reader.since_mark()
        if not called:
            sink.no_call(text)
        yield from read_content(reader, sink, [])

    def grammar(self, lark: Lark, tools: Schemas, *, parallel: bool) -> str:
        """A list, with the marks if they are tokens."""
        calls = super().grammar(lark, tools, parallel=parallel)
        if not lark.is_control(self.closing):
            return calls
        return f"({lark.marker('<|python_start|>')})? {calls} ({lark.marker(self.closing)})?"
