"""Where parsers put the parts of a reply."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Sequence

from app.text.parsers.reply import CallDelta, Content, Reasoning, ReplyPart

_ALPHANUMERIC = string.ascii_letters + string.digits


def call_id() -> str:
    """A new id of a call, as OpenAI's look."""
    return "call_" + "".join(secrets.choice(_ALPHANUMERIC) for _ in range(24))


def short_call_id() -> str:
    """A new id of nine letters and digits, on which some templates insist."""
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))


class Sink:
    """Parts of one reply. White space around thoughts and calls belongs to neither them nor the content.

    Args:
        new_id: makes the ids of calls.
        holds_space: white space waits for the content behind it, since a call may come instead.
        hidden: texts of control tokens, which no part of a reply ever holds.
    """

    def __init__(
        self, new_id: Callable[[], str] = call_id, *, holds_space: bool = True, hidden: Sequence[str] = ()
    ) -> None:
        self.hidden = hidden
        self.thinking = False
        self._new_id = new_id
        self._holds_space = holds_space
        self._parts: list[ReplyPart] = []
        self._space = ""
        self._strips = False
        self._calls = 0
        self._in_call = False
        self._has_arguments = False

    @property
    def has_called(self) -> bool:
        """Whether a call has begun."""
        return self._calls > 0

    def take(self) -> list[ReplyPart]:
        """The parts since the last time."""
        parts, self._parts = self._parts, []
        return parts

    def content(self, text: str) -> None:
        """A piece of content."""
        if shown := self._trimmed(text, holds=self._holds_space or bool(self._calls)):
            self._parts.append(Content(shown))

    def no_call(self, text: str) -> None:
        """What looked like a call and is none: content, without control tokens."""
        for marker in self.hidden:
            text = text.replace(marker, "")
        self.content(text)

    def begin_thought(self) -> None:
        """The thought begins."""
        self.thinking, self._space, self._strips = True, "", True

    def thought(self, text: str) -> None:
        """A piece of thought."""
        if shown := self._trimmed(text, holds=True):
            self._parts.append(Reasoning(shown))

    def end_thought(self) -> None:
        """The thought is over."""
        self.thinking, self._space, self._strips = False, "", True

    def begin_call(self, name: str, call_id: str = "") -> None:
        """A call begins, of a tool of that name."""
        self.end_call()
        self._space, self._strips = "", True
        self._parts.append(CallDelta(self._calls, id=call_id or self._new_id(), name=name))
        self._calls += 1
        self._in_call, self._has_arguments = True, False

    def arguments(self, text: str) -> None:
        """A piece of the JSON of the call's arguments."""
        if text:
            self._has_arguments = True
            self._parts.append(CallDelta(self._calls - 1, arguments=text))

    def end_call(self) -> None:
        """The call is whole; one without arguments has an empty object."""
        if self._in_call and not self._has_arguments:
            self.arguments("{}")
        self._in_call = False

    def cut_call(self) -> None:
        """The text ended inside the call."""
        self._in_call = False

    def end(self) -> None:
        """The reply is over: nothing can come behind white space any more."""
        if self._space and not self.thinking and not self._calls:
            self._parts.append(Content(self._space))
        self._space = ""

    def _trimmed(self, text: str, *, holds: bool) -> str:
        if self._strips:
            text = text.lstrip()
            self._strips = not text
        whole = self._space + text
        shown = whole.rstrip() if holds else whole
        self._space = whole[len(shown) :]
        return shown
