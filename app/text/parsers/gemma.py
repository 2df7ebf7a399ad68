"""``call:NAME{KEY:VALUE}`` between marks: Gemma 4 and FunctionGemma. Gemma 3 knows no form of its own."""

from __future__ import annotations

import json
import re

from app.text.parsers.format import CallFormat, ModelFacts, Schemas
from app.text.parsers.hermes import repeated, skip_to
from app.text.parsers.lark import Lark
from app.text.parsers.literal_grammars import LiteralGrammar
from app.text.parsers.literals import literal_json, marked, read_literal
from app.text.parsers.reader import Reader, Steps
from app.text.parsers.sink import Sink
from app.text.parsers.values import in_sequence, parameters

_NAME = re.compile(r"[A-Za-z0-9_.-]{0,128}")
_KEY = re.compile(r"[^\s:{},]{0,128}")


class Gemma4Calls(CallFormat):
    """A pair of marks for each call; strings stand between marks, too, and keys have no quotes."""

    name = "gemma4"
    trigger, closing, quote = "<|tool_call>", "<tool_call|>", '<|"|>'
    control: tuple[str, ...] = (trigger, closing, quote)

    def recognises(self, facts: ModelFacts) -> bool:
        """By the mark."""
        return self.trigger in facts.template

    def read_calls(self, reader: Reader, sink: Sink, tools: Schemas) -> Steps[bool]:
        """One call. A value that is cut off is left out."""
        yield from reader.spaces()
        if not (yield from reader.literal("call:")):
            return False
        name = yield from reader.matching(_NAME)
        if name not in tools or not (yield from reader.literal("{")):
            return False
        sink.begin_call(name)
        whole = yield from self._read_fields(reader, sink)
        sink.end_call() if whole else sink.cut_call()
        yield from skip_to(reader, sink, self.closing, before=self.trigger)
        return True

    def grammar(self, lark: Lark, tools: Schemas, *, parallel: bool) -> str:
        """Calls without white space, as the templates show them."""
        values = LiteralGrammar(lark, marked(self.quote))
        calls = []
        for name, schema in tools.items():
            items = []
            for key, each, required in parameters(name, schema):
                value = values.value(name, each, f"tools.{name}.parameters/properties/{key}")
                items.append((f"{lark.text(f'{key}:')} {value}", required))
            fields = in_sequence(lark, "field", items, '","')
            calls.append(f'{lark.text(f"call:{name}{{")} {fields} "}}" {lark.marker(self.closing)}')
        call = lark.one_of("call", calls)
        return repeated(lark, call, self.trigger, "") if parallel else call

    def _read_fields(self, reader: Reader, sink: Sink) -> Steps[bool]:
        notation = marked(self.quote)
        separator = "{"
        while True:
            yield from reader.spaces()
            if (yield from reader.literal("}")):
                sink.arguments("}" if separator == ", " else "")
                return True
            key = yield from reader.matching(_KEY)
            text = None
            if key and (yield from reader.literal(":")):
                text = yield from read_literal(reader, notation)
            value = literal_json(text, notation) if text is not None else None
            if value is None:
                return False
            sink.arguments(f"{separator}{json.dumps(key)}: {value}")
            separator = ", "
            yield from reader.spaces()
            yield from reader.literal(",")


class FunctionGemmaCalls(Gemma4Calls):
    """The same with other marks."""

    name = "function-gemma"
    trigger, closing, quote = "<start_function_call>", "<end_function_call>", "<escape>"
    control = (trigger, closing, quote)
