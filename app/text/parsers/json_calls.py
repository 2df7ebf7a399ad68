"""Calls written as one JSON object with a name and arguments, in whatever marks a format puts around it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from app.text.grammars.json_schema import schema_rule
from app.text.parsers.format import Schemas
from app.text.parsers.lark import Lark
from app.text.parsers.reader import Reader, Steps
from app.text.parsers.sink import Sink

ARGUMENT_KEYS = ("arguments", "parameters", "args")
NAME_KEYS = ("name", "function")


def read_call_object(reader: Reader, sink: Sink, tools: Schemas) -> Steps[bool]:
    """Reads an object such as ``{"name": …, "arguments": {…}}``, whatever the order of its fields.

    Returns:
        Whether it is a call of one of the tools. Once that is certain the arguments are passed on as they come.
    """
    fields = _Fields(reader, sink, tools)
    if not (yield from reader.literal("{")):
        return False
    while True:
        yield from reader.spaces()
        key = yield from _string(reader)
        if key is None:
            break
        yield from reader.spaces()
        if not (yield from reader.literal(":")):
            break
        yield from reader.spaces()
        if not (yield from fields.read(key)):
            break
        yield from reader.spaces()
        if (yield from reader.literal(",", "}")) != ",":
            break
    return fields.finish()


class _Fields:
    """The fields of one object."""

    def __init__(self, reader: Reader, sink: Sink, tools: Schemas) -> None:
        self._reader, self._sink, self._tools = reader, sink, tools
        self._id = ""
        self._begun = False
        self._waiting: str | None = None
        self._cut = False

    def read(self, key: str) -> Steps[bool]:
        """Reads the value of a key. Returns whether reading may go on."""
        if key in ARGUMENT_KEYS and self._begun:
            return (yield from self._stream())
        text = yield from self._reader.json_text()
        if text is None:
            self._cut = True
            return False
        if key in ARGUMENT_KEYS:
            self._waiting = text
        elif key in NAME_KEYS and not self._begun:
            name = loaded(text)
            if not isinstance(name, str) or name not in self._tools:
                return False
            self._sink.begin_call(name, self._id)
            self._begun = True
            if self._waiting is not None:
                self._sink.arguments(_object_text(self._waiting))
        elif key == "id" and isinstance(given := loaded(text), str):
            self._id = given[:64]
        return True

    def finish(self) -> bool:
        """Ends the call, if there was one. Returns whether there was."""
        if self._begun:
            self._sink.cut_call() if self._cut else self._sink.end_call()
        return self._begun

    def _stream(self) -> Steps[bool]:
        yield from self._reader.have(1)
        if self._reader.rest.startswith("{"):
            whole = yield from self._reader.json_value(self._sink.arguments)
        else:  # JSON in a string, or nothing
            text = yield from self._reader.json_text()
            whole = text is not None
            self._sink.arguments(_object_text(text or ""))
        self._cut = not whole
        return whole


def _object_text(text: str) -> str:
    """JSON of an object, of a text that may be that in a string; nothing for null."""
    value = loaded(text)
    if isinstance(value, str):
        return value if isinstance(loaded(value), dict) else ""
    return text if isinstance(value, dict) else ""


def _string(reader: Reader) -> Steps[str | None]:
    yield from reader.have(1)
    if not reader.rest.startswith('"'):
        return None
    text = yield from reader.json_text()
    value = loaded(text or "")
    return value if isinstance(value, str) else None


def loaded(text: str) -> Any:
    """The value of a JSON text; None for what is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def call_object(
    lark: Lark,
    tools: Schemas,
    *,
    arguments: str = "arguments",
    before: str = "",
    after: str = "",
    end: Sequence[str] = (),
) -> str:
    """Lark expression of such an object that calls one of the tools.

    Args:
        arguments: name of the field with the arguments.
        before, after: texts around the object.
        end: expressions that follow.
    """
    calls = []
    for name, schema in tools.items():
        opening = f'{before}{{"name": {json.dumps(name)}, "{arguments}": '
        pieces = [lark.text(opening), arguments_rule(lark, name, schema), lark.text("}" + after), *end]
        calls.append(" ".join(pieces))
    return lark.one_of("call", calls)


def arguments_rule(lark: Lark, name: str, schema: Any) -> str:
    """A rule for the JSON of a tool's arguments."""
    return lark.rule(f"arguments_{name.lower()}", schema_rule(schema, param=f"tools.{name}.parameters"))
