"""Conversations with tools for chat templates that show none, or not all of it: what they lack is told in words."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from app.text.parsers.generic import call_text, instructions, result_text
from app.text.template_forms import Message, MessageForms, texts

_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")


def with_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], forms: MessageForms) -> list[Message]:
    """The messages, and what tools there are: in the system's message, or the user's first where there can be none."""
    told = instructions(tools)
    first = messages[0] if messages else {}
    if first.get("role") == "system" and "system" not in forms.hidden_roles:
        return [_with_text(first, [*texts(first.get("content")), told]), *messages[1:]]
    if "system" not in forms.hidden_roles:
        return [{"role": "system", "content": told}, *messages]
    for place, message in enumerate(messages):
        if message.get("role") == "user":
            told_first = _with_text(message, [told, *texts(message.get("content"))])
            return [*messages[:place], told_first, *messages[place + 1 :]]
    return [{"role": "user", "content": told}, *messages]


def with_short_ids(messages: Sequence[Message]) -> list[Message]:
    """The messages with ids of calls that are nine letters and digits, the same for equal ids: some templates refuse
    all others, and clients bring what another server gave them."""
    return [_with_ids(message) for message in messages]


def _with_ids(message: Message) -> Message:
    if isinstance(given := message.get("tool_call_id"), str):
        message = {**message, "tool_call_id": _short(given)}
    if calls := _calls(message):
        short = [{**call, "id": _short(str(call.get("id") or place))} for place, call in enumerate(calls)]
        message = {**message, "tool_calls": short}
    return message


def _short(given: str) -> str:
    if _SHORT_ID.fullmatch(given):
        return given
    return hashlib.sha256(given.encode(errors="surrogatepass")).hexdigest()[:9]


def in_words(messages: Sequence[Message], forms: MessageForms) -> Sequence[Message]:
    """The messages with the calls and the results that the template does not show as text: calls in the assistant's
    words, results in the user's."""
    lacks_results = "tool" in forms.hidden_roles
    if forms.shows_calls and not lacks_results:
        return messages
    shown: list[Message] = []
    result_last = False
    for message in messages:
        role = message.get("role")
        is_result = role == "tool" and lacks_results
        if is_result:
            message = {"role": "user", "content": result_text("\n".join(texts(message.get("content"))))}
        elif role == "assistant" and not forms.shows_calls and _calls(message):
            message = _calling(message)
        if shown and shown[-1].get("role") == message.get("role") == "user" and (is_result or result_last):
            # Many templates want the roles in turn.
            message = _with_text(message, [*texts(shown.pop().get("content")), *texts(message.get("content"))])
        shown.append(message)
        result_last = is_result
    return shown


def _calls(message: Message) -> list[Any]:
    calls = message.get("tool_calls")
    return [call for call in calls if isinstance(call, Mapping)] if isinstance(calls, list | tuple) else []


def _calling(message: Message) -> Message:
    said = [*texts(message.get("content")), *map(call_text, _calls(message))]
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return _with_text(rest, [text for text in said if text])


def _with_text(message: Message, parts: Sequence[str]) -> Message:
    return {**message, "content": "\n\n".join(parts)}
