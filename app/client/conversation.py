"""``tuili chat``: a conversation in the terminal with any server that speaks the OpenAI API."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from app.client.sse import DONE, Chunk, EventDecoder, decode_chunk
from app.client.target import (
    TargetError,
    api_root,
    auth_headers,
    describe_body,
    describe_error,
    describe_exception,
    first_model,
)

_PROMPT = "> "
_RESET = "/reset"
# What a model says is not to move the cursor, set colours or ring.
_UNPRINTABLE = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - set(map(ord, "\n\t")))


@dataclass
class Conversation:
    """Messages so far, and how the next answer is asked for."""

    http: httpx.Client
    url: str
    body: dict[str, Any]
    """Fields of every request besides the messages."""
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

    def reset(self) -> None:
        """Forgets everything but the system prompt."""
        self.messages.clear()

    def ask(self, text: str) -> Generator[str, None, None]:
        """Yields the answer piece by piece. Closed early, it keeps as the answer what was said by then, if anything.

        Raises:
            TargetError: no answer, or not all of it; the conversation is as it was before.
        """
        self.messages.append({"role": "user", "content": text})
        said: list[str] = []
        try:
            for piece in self._stream():
                said.append(piece)
                yield piece
        except TargetError:
            self.messages.pop()
            raise
        except (GeneratorExit, KeyboardInterrupt):
            if said:
                self._answered(said)
            else:
                self.messages.pop()
            raise
        self._answered(said)

    def _answered(self, said: list[str]) -> None:
        self.messages.append({"role": "assistant", "content": "".join(said)})

    def _stream(self) -> Iterator[str]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        body = {**self.body, "messages": [*system, *self.messages], "stream": True}
        complete = False
        try:
            with self.http.stream("POST", self.url, json=body) as response:
                if not response.is_success:
                    raise TargetError(f"HTTP {response.status_code}: {describe_body(response.read())}")
                for chunk in _chunks(response):
                    complete = complete or chunk.finished
                    if chunk.text:
                        yield chunk.text
        except (httpx.HTTPError, httpx.InvalidURL) as e:
            raise TargetError(f"{self.url}: {describe_exception(e)}") from None
        if not complete:
            raise TargetError("the stream ended in the middle of the answer")


def _chunks(response: httpx.Response) -> Iterator[Chunk]:
    events = EventDecoder()
    for piece in response.iter_bytes():
        for data in events.feed(piece):
            if data == DONE:
                continue
            try:
                chunk = decode_chunk(data)
            except msgspec.DecodeError as e:
                raise TargetError(f"not a chunk of an answer: {e}") from None
            if chunk.error:
                raise TargetError(describe_error(chunk.error))
            yield chunk


def run(
    url: str,
    *,
    model: str | None,
    api_key: str | None,
    system: str | None,
    body: dict[str, Any],
    question: str | None = None,
) -> int:
    """Talks until stdin ends; a line is a turn.

    On a terminal Ctrl-C stops an answer, Ctrl-D leaves, and after an error the conversation goes on. Elsewhere the
    answers alone go to stdout, and the first error ends the program.

    Args:
        question: all that is asked, in place of what stdin holds.

    Returns:
        The exit code.
    """
    try:
        body = {"model": model or first_model(url, api_key), **body}
        # A model may think for as long as it likes; only who does not even answer the door is given up.
        timeout = httpx.Timeout(None, connect=10.0)
        with httpx.Client(headers=auth_headers(api_key), timeout=timeout) as http:
            conversation = Conversation(http, f"{api_root(url)}/chat/completions", body, system)
            if question is not None:
                _answer(conversation, question)
            elif sys.stdin.isatty() and sys.stdout.isatty():
                _talk(conversation, body["model"])
            else:
                _answer_lines(conversation)
    except TargetError as e:
        _tell(f"tuili: error: {e}")
        return 1
    return 0


def _talk(conversation: Conversation, model: str) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401 - gives input() a line editor
    _tell(f"{model}: Ctrl-C stops an answer, {_RESET} starts over, Ctrl-D leaves.")
    while True:
        try:
            line = input(_PROMPT)
        except KeyboardInterrupt:
            _tell("")
            continue
        except EOFError:
            _tell("")
            return
        try:
            _turn(conversation, line)
        except KeyboardInterrupt:
            _tell(" [stopped]")
        except TargetError as e:
            _tell(f"error: {e}")


def _answer_lines(conversation: Conversation) -> None:
    for line in sys.stdin:
        _turn(conversation, line)


def _turn(conversation: Conversation, line: str) -> None:
    text = line.strip()
    if text == _RESET:
        conversation.reset()
    elif text:
        _answer(conversation, text)


def _answer(conversation: Conversation, text: str) -> None:
    # Closed here and now when interrupted: the server is to stop, and the conversation to know what was said.
    with closing(conversation.ask(text)) as answer:
        for piece in answer:
            sys.stdout.write(piece.translate(_UNPRINTABLE) if sys.stdout.isatty() else piece)
            sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
