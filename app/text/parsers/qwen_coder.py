"""``<tool_call><function=NAME><parameter=KEY>…</parameter></function></tool_call>``: Qwen3-Coder, Qwen3.5, Step,
Nemotron 3."""

from __future__ import annotations

import json
import re

from app.text.parsers.format import CallFormat, ModelFacts, Schemas
from app.text.parsers.hermes import repeated, skip_to
from app.text.parsers.lark import Lark
from app.text.parsers.reader import Reader, Steps
from app.text.parsers.sink import Sink
from app.text.parsers.values import bare_json, bare_value, in_sequence, parameters, read_bare

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_FUNCTION, _END_FUNCTION = "<function=", "</function>"
_PARAMETER, _END_PARAMETER = "<parameter=", "</parameter>"
_NAME = re.compile(r"[^>\s<]{0,128}")


class QwenCoderCalls(CallFormat):
    """Arguments in tags of their own, strings without quotes."""

    name = "qwen-coder"
    trigger = _OPEN
    control = (_OPEN, _CLOSE)

    def recognises(self, facts: ModelFacts) -> bool:
        """By the tags of functions and parameters."""
        return "<function=" in facts.template and "<parameter=" in facts.template

    def read_calls(self, reader: Reader, sink: Sink, tools: Schemas) -> Steps[bool]:
        """One function. A value that is cut off is left out."""
        yield from reader.spaces()
        if not (yield from reader.literal(_FUNCTION)):
            return False
        name = yield from reader.matching(_NAME)
        if name not in tools or not (yield from reader.literal(">")):
            return False
        sink.begin_call(name)
        if (yield from _read_parameters(reader, sink, {key: each for key, each, _ in parameters(name, tools[name])})):
            sink.end_call()
        else:
            sink.cut_call()
        yield from skip_to(reader, sink, _CLOSE, before=_OPEN)
        return True

    def grammar(self, lark: Lark, tools: Schemas, *, parallel: bool) -> str:
        """Each tag on a line of its own, as templates show them."""
        calls = []
        for name, schema in tools.items():
            items = []
            for key, each, required in parameters(name, schema):
                param = f"tools.{name}.parameters/properties/{key}"
                value = bare_value(lark, each, _END_PARAMETER, param, lead="\n", tail="\n")
                items.append((f"{lark.text(_PARAMETER + key + '>' + chr(10))} {value}", required))
            opening = lark.text(f"\n{_FUNCTION}{name}>\n")
            closing = lark.text(f"{_END_FUNCTION}\n")
            calls.append(f"{opening} {in_sequence(lark, name, items)} {closing} {lark.marker(_CLOSE)}")
        call = lark.one_of("call", calls)
        return repeated(lark, call, _OPEN, lark.pattern("GAP", r"\n?")) if parallel else call


def _read_parameters(reader: Reader, sink: Sink, schemas: dict[str, object]) -> Steps[bool]:
    """Reads parameters to the function's end. Returns whether that came."""
    separator = "{"
    while True:
        yield from reader.spaces()
        if not (yield from reader.literal(_PARAMETER)):
            break
        key = yield from reader.matching(_NAME)
        yield from reader.literal(">")
        schema = schemas.get(key, {})
        text = yield from read_bare(reader, schema, _END_PARAMETER)
        if text is None:
            return False
        text = text.removeprefix("\n").removesuffix("\n")
        sink.arguments(f"{separator}{json.dumps(key)}: {bare_json(text, schema)}")
        separator = ", "
    ended = bool((yield from reader.literal(_END_FUNCTION, _CLOSE)))
    if ended and separator == ", ":
        sink.arguments("}")
    return ended
