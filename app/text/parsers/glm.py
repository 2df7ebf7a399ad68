"""``<tool_call>NAME <arg_key>KEY</arg_key> <arg_value>…</arg_value></tool_call>``: GLM 4.5 and later."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from app.text.parsers.format import CallFormat, ModelFacts, Schemas
from app.text.parsers.hermes import repeated, skip_to
from app.text.parsers.lark import Lark
from app.text.parsers.reader import Reader, Steps
from app.text.parsers.sink import Sink
from app.text.parsers.values import bare_json, bare_value, in_sequence, parameters, read_bare

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_KEY, _END_KEY = "<arg_key>", "</arg_key>"
_VALUE, _END_VALUE = "<arg_value>", "</arg_value>"
_NAME = re.compile(r"[^\s<]{0,128}")


class GlmCalls(CallFormat):
    """A name, then keys and values in tags, strings without quotes."""

    name = "glm"
    trigger = _OPEN
    control = (_OPEN, _CLOSE, _KEY, _END_KEY, _VALUE, _END_VALUE)

    def recognises(self, facts: ModelFacts) -> bool:
        """By the tags of keys and values."""
        return _KEY in facts.template and _VALUE in facts.template

    def read_calls(self, reader: Reader, sink: Sink, tools: Schemas) -> Steps[bool]:
        """One call. A value that is cut off is left out."""
        yield from reader.spaces()
        name = yield from reader.matching(_NAME)
        yield from reader.spaces()
        if name not in tools or not (reader.ended or (yield from reader.have(1))):
            return False
        next_tag = yield from reader.literal(_KEY, _CLOSE)
        if not next_tag:
            return False
        sink.begin_call(name)
        schemas = {key: each for key, each, _ in parameters(name, tools[name])}
        if next_tag == _CLOSE or (yield from _read_arguments(reader, sink, schemas)):
            sink.end_call()
        else:
            sink.cut_call()
            yield from skip_to(reader, sink, _CLOSE, before=_OPEN)
        return True

    def grammar(self, lark: Lark, tools: Schemas, *, parallel: bool) -> str:
        """Each tag on a line of its own, as the templates of 4.5 and 4.6 show them, or not, as later ones do."""
        gap = lark.pattern("GAP", r"\n?")
        calls = []
        for name, schema in tools.items():
            items = []
            for key, each, required in parameters(name, schema):
                param = f"tools.{name}.parameters/properties/{key}"
                head = f"{lark.marker(_KEY)} {lark.text(key)} {lark.marker(_END_KEY)} {gap} {lark.marker(_VALUE)}"
                items.append((f"{head} {bare_value(lark, each, _END_VALUE, param)} {gap}", required))
            calls.append(f"{lark.text(name)} {gap} {in_sequence(lark, name, items)} {lark.marker(_CLOSE)}")
        call = lark.one_of("call", calls)
        return repeated(lark, call, _OPEN, gap) if parallel else call


def _read_arguments(reader: Reader, sink: Sink, schemas: Mapping[str, object]) -> Steps[bool]:
    """Reads keys and values behind the first key's tag, to the end of the call. Returns whether that came."""
    separator, next_tag = "{", _KEY
    while next_tag == _KEY:
        pieces: list[str] = []
        found = yield from reader.until([_END_KEY], pieces.append)
        yield from reader.spaces()
        if not found or not (yield from reader.literal(_VALUE)):
            return False
        key = "".join(pieces).strip()
        schema = schemas.get(key, {})
        text = yield from read_bare(reader, schema, _END_VALUE)
        if text is None:
            return False
        sink.arguments(f"{separator}{json.dumps(key)}: {bare_json(text, schema)}")
        separator = ", "
        yield from reader.spaces()
        next_tag = yield from reader.literal(_KEY, _CLOSE)
    if next_tag == _CLOSE:
        sink.arguments("}")
    return next_tag == _CLOSE
