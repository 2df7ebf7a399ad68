"""In what form a chat template takes messages, found out by rendering some.

Templates of one model want a message's content as a string, those of another as a list of parts; a tool call's
arguments as an object or as its JSON. Given the other form they print nothing, a Python literal, or fail.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from app.errors import RequestError

Message = Mapping[str, Any]
Render = Callable[..., str]

_ROLE = re.compile(r"[\w-]{1,64}")
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names that a message's reasoning goes by; templates read the first, some the second."""

_FIRST, _SECOND = "quokka7first", "quokka7second"
_NAME, _KEY, _VALUE = "quokka_name", "quokka_key", "quokka_value"
_TOOL = {
    "type": "function",
    "function": {
        "name": "wombat_name",
        "description": "A wombat.",
        "parameters": {"type": "object", "properties": {"wombat_key": {"type": "string"}}, "required": []},
    },
}


@dataclass(frozen=True)
class ContentForm:
    """How messages of one role carry text."""

    strings: bool = True
    """The template shows a string."""
    parts: bool = False
    """The template shows every part of a list."""

    def of(self, parts: Sequence[str], *, listed: bool) -> str | list[dict[str, str]]:
        """A message's content.

        Args:
            parts: its parts; one if it was a string.
            listed: whether it was a list of parts.
        """
        if self.strings and not (listed and self.parts):
            return "\n".join(parts)
        return [{"type": "text", "text": text} for text in (parts if self.parts else ["\n".join(parts)])]


@dataclass(frozen=True)
class MessageForms:
    """What one template takes."""

    default: ContentForm = ContentForm()
    """For users' messages and roles that were not tried."""
    by_role: Mapping[str, ContentForm] = field(default_factory=dict)
    arguments_are_objects: bool = True
    """A tool call's arguments are given as an object, not as JSON."""
    tool_calls_without_content: bool = False
    """An assistant's message that is all tool calls has the content None, not an empty one."""
    shows_calls: bool = True
    """The template shows an assistant's tool calls."""
    hidden_roles: frozenset[str] = frozenset()
    """Roles that it refuses, or whose messages it does not show."""

    def message(self, message: Message) -> dict[str, Any]:
        """An OpenAI-style message as the template expects it; fields that say nothing are left out.

        Raises:
            RequestError: 400, it is no such message, or has parts that are not text.
        """
        role = message.get("role")
        if not isinstance(role, str) or not _ROLE.fullmatch(role):
            raise RequestError(f"{role!r} is not a message role.", param="messages")
        # `is defined` takes null, and an empty list of calls, for something that is there.
        prepared = {key: value for key, value in message.items() if value is not None}
        calls = prepared.pop("tool_calls", None)
        if calls:
            if not isinstance(calls, list | tuple):
                raise RequestError("A message's tool_calls must be a list.", param="messages")
            prepared["tool_calls"] = [self._call(call) for call in calls]
        content = prepared.get("content")
        form = self.by_role.get(role, self.default)
        if content is None and calls and self.tool_calls_without_content:
            prepared["content"] = None
        elif not (isinstance(content, str) and form.strings):
            prepared["content"] = form.of(texts(content), listed=isinstance(content, list))
        reasoning = next((prepared[name] for name in _REASONING if name in prepared), None)
        if reasoning is not None:
            prepared = {"thinking": reasoning, **prepared, "reasoning_content": reasoning}
        return prepared

    def _call(self, call: Any) -> Any:
        match call:
            case {"function": {"arguments": arguments} as function}:
                return {**call, "function": {**function, "arguments": self.arguments(arguments)}}
            case _:
                return call

    def arguments(self, arguments: Any) -> Any:
        """A tool call's arguments. What a model wrote that is not JSON stays as it is; nothing is an empty object."""
        if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
            arguments = {}
        if not self.arguments_are_objects:
            return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        if isinstance(arguments, str):
            try:
                return json.loads(arguments)
            except (ValueError, RecursionError):
                return arguments
        return arguments


def find_forms(render: Render) -> MessageForms:
    """Tries conversations.

    Args:
        render: the prompt of messages, and of tools given by that name. Raises :class:`RequestError` where the
            template fails; other errors end the search and are raised.
    """

    def rendered(messages: Sequence[Message], **options: Any) -> str:
        try:
            return render(messages, **options).lower()  # whatever case the template puts texts in
        except RequestError:
            return ""

    default = _content_form(rendered, lambda content: iter([[_message("user", content)]])) or ContentForm()
    by_role: dict[str, ContentForm] = {"user": default}
    hidden: set[str] = set()
    calls = _call_form(rendered, default)
    user = _message("user", default.of(["Hello."], listed=False))

    def with_system(content: Any) -> Iterator[list[Message]]:
        yield [_message("system", content), user]

    def with_assistant(content: Any) -> Iterator[list[Message]]:
        yield [user, _message("assistant", content), user]
        yield [user, _message("assistant", content)]

    def with_tool(content: Any) -> Iterator[list[Message]]:
        called = _calling(None if calls.tool_calls_without_content else "", calls.arguments({_KEY: _VALUE}))
        yield [user, called, {**_message("tool", content), "tool_call_id": "call00001", "name": _NAME}]

    for role, conversations in (("system", with_system), ("assistant", with_assistant), ("tool", with_tool)):
        form = _content_form(rendered, conversations)
        by_role[role] = form or default
        if form is None:
            hidden.add(role)
    return replace(calls, default=default, by_role=by_role, hidden_roles=frozenset(hidden))


def texts(content: object) -> list[str]:
    """The text of a message's content, part by part. Raises :class:`RequestError` 400 for parts that are not text."""
    match content:
        case None:
            return []
        case str():
            return [content]
        case list():
            return [_part_text(part) for part in content]
        case _:
            raise RequestError("A message's content must be a string or a list of parts.", param="messages")


def _part_text(part: object) -> str:
    match part:
        case str():
            return part
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": kind}:
            raise RequestError(f"Content parts of type {kind!r} are not supported by this model.", param="messages")
        case _:
            raise RequestError("A content part must be an object with a type.", param="messages")


def _message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _calling(content: Any, arguments: Any) -> dict[str, Any]:
    call = {"id": "call00001", "type": "function", "function": {"name": _NAME, "arguments": arguments}}
    return {**_message("assistant", content), "tool_calls": [call]}


def _content_form(render: Render, conversations: Callable[[Any], Iterator[Sequence[Message]]]) -> ContentForm | None:
    """The form in which the conversations show their content; None if they never do."""
    parts = [{"type": "text", "text": text} for text in (_FIRST, _SECOND)]
    for as_string, as_parts in zip(conversations(_FIRST), conversations(parts), strict=True):
        strings = _FIRST in render(as_string)
        shown = render(as_parts)
        # A list that is printed as it is shows its keys.
        first = _FIRST in shown and "'text'" not in shown and '"text"' not in shown
        if strings or first:
            return ContentForm(strings, first and _SECOND in shown.partition(_FIRST)[2])
    return None


def _call_form(render: Render, user: ContentForm) -> MessageForms:
    """How tool calls are shown; what is left at its default if they never are."""
    question = _message("user", user.of(["Hello."], listed=False))
    nones = render([question], tools=[_TOOL]).count("none")
    arguments = {_KEY: _VALUE}
    for content in (None, ""):
        for given in (arguments, json.dumps(arguments)):
            shown = render([question, _calling(content, given)], tools=[_TOOL])
            as_meant = _KEY in shown and f"'{_KEY}'" not in shown and f'\\"{_KEY}\\"' not in shown
            if _NAME in shown and as_meant and shown.count("none") <= nones:
                return MessageForms(
                    arguments_are_objects=given is arguments, tool_calls_without_content=content is None
                )
    return MessageForms(shows_calls=False)
