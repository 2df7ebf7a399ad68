"""Server-sent events, as a client reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

DONE = b"[DONE]"


class EventDecoder:
    """Cuts a byte stream into events.

    By bytes, because JSON text may hold characters such as U+2028 at which ``str.splitlines`` would cut.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Takes what came in; yields the data of every event that it completes."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                yield b"\n".join(self._data)
                self._data.clear()


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True):
    """What a server says it read and wrote."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that came out of a cache; 0 when the server does not say."""
        return (self.prompt_tokens_details and self.prompt_tokens_details.cached_tokens) or 0


class Chunk(msgspec.Struct, frozen=True):
    """One event of a completions or chat stream."""

    choices: list[_Choice] | None = None
    usage: Usage | None = None
    error: Any = None

    @property
    def text(self) -> str:
        """What the model said, reasoning included; empty in a chunk that only carries a role, an end or a usage."""
        return "".join(map(_text, self.choices or ()))

    @property
    def finished(self) -> bool:
        """An answer ends with this chunk."""
        return any(choice.finish_reason for choice in self.choices or ())


def _text(choice: _Choice) -> str:
    if choice.delta is None:
        return choice.text or ""
    return (choice.delta.reasoning_content or choice.delta.reasoning or "") + (choice.delta.content or "")


_decoder = msgspec.json.Decoder(Chunk)


def decode_chunk(data: bytes) -> Chunk:
    """Reads an event's data.

    Raises:
        msgspec.DecodeError: not JSON, or not of a chunk's shape.
    """
    return _decoder.decode(data)
