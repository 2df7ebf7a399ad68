"""``{"name": …, "parameters": {…}}``, the whole answer, sometimes behind ``<|python_tag|>``: Llama 3.1 and later."""

from __future__ import annotations

from app.text.parsers.format import CallFormat, ModelFacts, Schemas, read_content
from app.text.parsers.json_calls import call_object, read_call_object
from app.text.parsers.lark import Lark
from app.text.parsers.reader import Reader, Steps
from app.text.parsers.sink import Sink

_PYTHON = "<|python_tag|>"


class Llama3Calls(CallFormat):
    """A bare JSON object. More than one are separated by semicolons."""

    name = "llama3"
    begins = r'\{\s*"name"'
    control = (_PYTHON,)

    def recognises(self, facts: ModelFacts) -> bool:
        """By what the template tells the model to answer with, or by the tag."""
        template = facts.template
        return (
            facts.reads_tools
            and "parameters" in template
            and (_PYTHON in template or '{"name": function name' in template)
        )

    def read(self, reader: Reader, sink: Sink, tools: Schemas) -> Steps[None]:
        """Calls if the answer begins with one; all else is content."""
        reader.mark()
        yield from reader.spaces()
        yield from reader.literal(_PYTHON)
        yield from reader.spaces()
        if not (yield from self.read_calls(reader, sink, tools)):
            sink.no_call(reader.since_mark())
            yield from read_content(reader, sink, [])
            return
        reader.since_mark()
        while True:
            reader.mark()
            yield from reader.spaces()
            yield from reader.literal(";", ",")
            yield from reader.spaces()
            yield from reader.literal(_PYTHON)
            called = yield from self.read_calls(reader, sink, tools)
            text = reader.since_mark()
            if not called:
                sink.no_call(text)
                yield from read_content(reader, sink, [])
                return

    def read_calls(self, reader: Reader, sink: Sink, tools: Schemas) -> Steps[bool]:
        """One object."""
        return (yield from read_call_object(reader, sink, tools))

    def grammar(self, lark: Lark, tools: Schemas, *, parallel: bool) -> str:
        """Objects in the form that the templates ask for."""
        call = call_object(lark, tools, arguments="parameters")
        calls = f"{call} (/; ?/ {call})*" if parallel else call
        return f"({lark.marker(_PYTHON)})? {calls}" if lark.is_control(_PYTHON) else calls
