"""A prompt that ends inside its last message, for the model to continue that message.

A template closes every message. So the last message's text is given to it with a mark at the end, and the rendered
prompt is cut there.
"""

from __future__ import annotations

from typing import Any

from app.errors import RequestError

_END_OF_TEXT = "\ufdd1\ufdef"
"""Mark behind the last message's text: noncharacters, which Unicode reserves for a program's own use."""

_TRIMMABLE = "\u205f"
"""White space that no template writes. It follows the mark, and is missing afterwards if the template trims texts."""


def mark_end(messages: list[dict[str, Any]]) -> None:
    """Puts the mark behind the last message's text, in place.

    Raises:
        RequestError: 400, there is no last message, or it has no text.
    """
    content = messages[-1]["content"] if messages else ""
    if not content:
        raise RequestError("There is no final message to continue.", param="messages")
    if isinstance(content, str):
        messages[-1]["content"] = f"{content}{_END_OF_TEXT}{_TRIMMABLE}"
    else:
        content[-1]["text"] += _END_OF_TEXT + _TRIMMABLE


def cut_at_end(rendered: str) -> str | None:
    """The rendered prompt up to the mark, without trailing white space if the template trims texts.

    None if the template does not show the last message.
    """
    head, mark, tail = rendered.rpartition(_END_OF_TEXT)
    if not mark:
        return None
    return head if tail.startswith(_TRIMMABLE) else head.rstrip()
