"""``[TOOL_CALLS]``: behind it an array of objects (Mistral 7B v0.3 to Small 3.1), or ``NAME[ARGS]{…}`` for each call,
sometimes with ``[CALL_ID]`` (Small 3.2, Magistral, Devstral, Ministral 3)."""

from __future__ import annotations

import re

from app.text.parsers.format import CallFormat, ModelFacts, Schemas
from app.text.parsers.json_calls import arguments_rule, call_object, read_call_object
from app.text.parsers.lark import Lark
from app.text.parsers.reader import Reader, Steps
from app.text.parsers.sink import Sink

_CALLS, _ID, _ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_NAME = re.compile(r"[A-Za-z0-9_.-]{0,128}")
_WORD = re.compile(r"[A-Za-z0-9]{0,64}")


class MistralCalls(CallFormat):
    """Both forms are read, whichever the model was trained on."""

    trigger = _CALLS
    control = (_CALLS, _ID, _ARGS)

    def read_calls(self, reader: Reader, sink: Sink, tools: Schemas) -> Steps[bool]:
        """An array of calls, or one call by its name."""
        yield from reader.spaces()
        if (yield from reader.literal("[")):
            return (yield from self._read_array(reader, sink, tools))
        name = yield from reader.matching(_NAME)
        if name not in tools:
            return False
        call_id = ""
        if (yield from reader.literal(_ID)):
            call_id = yield from reader.matching(_WORD)
        yield from reader.literal(_ARGS)
        yield from reader.spaces()
        yield from reader.have(1)
        if not reader.rest.startswith("{") and not reader.ended:
            return False
        sink.begin_call(name, call_id)
        whole = yield from reader.json_value(sink.arguments)
        sink.end_call() if whole else sink.cut_call()
        return True

    def _read_array(self, reader: Reader, sink: Sink, tools: Schemas) -> Steps[bool]:
        called = False
        while True:
            yield from reader.spaces()
            if not (yield from read_call_object(reader, sink, tools)):
                return called
            called = True
            yield from reader.spaces()
            if (yield from reader.literal(",", "]")) != ",":
                return True


class MistralNamed(MistralCalls):
    """``[TOOL_CALLS]NAME[ARGS]{…}`` for each call."""

    name = "mistral"

    def recognises(self, facts: ModelFacts) -> bool:
        """By the mark before arguments."""
        return _CALLS in facts.template and _ARGS in facts.template

    def grammar(self, lark: Lark, tools: Schemas, *, parallel: bool) -> str:
        """A name and its arguments; ids are left to the server."""
        calls = [f"{lark.text(name)} {lark.marker(_ARGS)} {arguments_rule(lark, name, tools[name])}" for name in tools]
        call = lark.one_of("call", calls)
        return f"{call} ({lark.marker(_CALLS)} {call})*" if parallel else call


class MistralArray(MistralCalls):
    """``[TOOL_CALLS][{"name": …, "arguments": {…}}]``."""

    name = "mistral-array"

    def recognises(self, facts: ModelFacts) -> bool:
        """By the mark, without that before arguments."""
        return _CALLS in facts.template and _ARGS not in facts.template

    def grammar(self, lark: Lark, tools: Schemas, *, parallel: bool) -> str:
        """One array of objects."""
        call = call_object(lark, tools)
        calls = f"{call} (/, ?/ {call})*" if parallel else call
        return f"/ ?\\[/ {calls} {lark.text(']')}"
