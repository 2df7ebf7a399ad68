"""``<tool_call>{"name": …, "arguments": {…}}</tool_call>``: Hermes, Qwen 2.5 and 3, SmolLM3 and many others."""

from __future__ import annotations

from app.text.parsers.format import CallFormat, ModelFacts, Schemas
from app.text.parsers.json_calls import call_object, read_call_object
from app.text.parsers.lark import Lark
from app.text.parsers.reader import Reader, Steps
from app.text.parsers.sink import Sink

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class HermesCalls(CallFormat):
    """A JSON object in tags, a pair of tags for each call."""

    name = "hermes"
    trigger = _OPEN
    control = (_OPEN, _CLOSE)

    def recognises(self, facts: ModelFacts) -> bool:
        """By the tags, in a template that writes no other form into them."""
        return _OPEN in facts.template and "<function=" not in facts.template and "<arg_key>" not in facts.template

    def read_calls(self, reader: Reader, sink: Sink, tools: Schemas) -> Steps[bool]:
        """An object, and what is left before the closing tag."""
        yield from reader.spaces()
        if not (yield from read_call_object(reader, sink, tools)):
            return False
        yield from skip_to(reader, sink, _CLOSE, before=_OPEN)
        return True

    def grammar(self, lark: Lark, tools: Schemas, *, parallel: bool) -> str:
        """Objects on lines of their own, as templates show them."""
        gap = lark.pattern("GAP", r"\n?")
        call = call_object(lark, tools, end=[gap, lark.marker(_CLOSE)])
        return repeated(lark, f"{gap} {call}", _OPEN, gap) if parallel else f"{gap} {call}"


def repeated(lark: Lark, call: str, trigger: str, gap: str) -> str:
    """Lark expression of calls behind a trigger, each further one behind a trigger of its own."""
    return f"{call} ({gap} {lark.marker(trigger)} {call})* {gap}"


def skip_to(reader: Reader, sink: Sink, closing: str, *, before: str) -> Steps[None]:
    """Reads up to the closing marker, or to what begins the next call (``before``). What a model wrote there belongs to
    no call and is left out; behind the last call, without a closing marker, it is content."""
    junk: list[str] = []
    found = yield from reader.until([closing, before], junk.append)
    if found == before:
        reader.skip(-len(before))
    elif not found:
        sink.content("".join(junk))
