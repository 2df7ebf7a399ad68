"""Answers in Ollama's shapes: lines of JSON, or one whole."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from app.api.endpoint import AnswerHead, AnswerWriter
from app.api.json import encode, finite
from app.api.ollama.replies import LineReply, PieceWriter, whole_reply
from app.api.ollama.schemas.answers import (
    OllamaChat,
    OllamaGenerated,
    OllamaLogprob,
    OllamaReply,
    OllamaToken,
    OllamaToolCall,
)
from app.api.timing import generation_phases, server_timing
from app.contract.request import FinishReason
from app.serving.generation import Completion, Generation
from app.serving.types import ChoiceDelta, TokenLogprob

_NANOSECONDS = 10**9


class OllamaWriter(AnswerWriter):
    """Writes one answer in structs that a subclass makes.

    Args:
        with_logprobs: report the log-probability of each token.
    """

    def __init__(self, head: AnswerHead, *, with_logprobs: bool = False) -> None:
        self._model = head.model
        self._with_logprobs = with_logprobs
        self._started = time.monotonic()
        self._pieces = PieceWriter()
        self._reason = FinishReason.STOP

    @staticmethod
    @abstractmethod
    def line(reply: LineReply, fields: Mapping[str, Any]) -> msgspec.Struct:
        """A line, or the whole answer, that has ``fields`` besides what it says."""

    @classmethod
    def unloaded(cls, model: str) -> bytes:
        """JSON that says that a model goes."""
        fields = {"model": model, "created_at": _now(), "done": True, "done_reason": "unload"}
        return encode(cls.line(LineReply(), fields))

    def headers(self, generations: Sequence[Generation]) -> Mapping[str, str]:
        """Where the time went."""
        return server_timing(generations)

    def frames(self, _prompt: int, delta: ChoiceDelta, _generations: Sequence[Generation]) -> list[bytes]:
        """A line for each piece of the reply; calls of tools come whole."""
        replies = self._pieces.push(delta.reply)
        if delta.finish_reason is not None:
            self._reason = delta.finish_reason
            replies += self._pieces.end()
        logprobs = self._logprobs(delta.tokens)
        if logprobs is not UNSET and logprobs and not replies:
            replies = [LineReply()]
        lines = []
        for place, reply in enumerate(replies):
            fields = {"done": False, "logprobs": UNSET if place else logprobs}
            lines.append(self._encode(reply, fields))
        return lines

    def end(self, generations: Sequence[Generation]) -> list[bytes]:
        """The last line: why the answer ended, its counts and times."""
        return [self._encode(LineReply(), self._last_fields(self._reason, generations))]

    def whole(self, completions: Sequence[Sequence[Completion]], generations: Sequence[Generation]) -> bytes:
        """JSON of the whole answer."""
        ((completion,),) = completions
        fields = self._last_fields(completion.finish_reason or FinishReason.STOP, generations)
        return self._encode(
            whole_reply(completion.parts), {**fields, "logprobs": self._logprobs(completion.tokens)}
        ).removesuffix(b"\n")

    def _encode(self, reply: LineReply, fields: Mapping[str, Any]) -> bytes:
        head = {"model": self._model, "created_at": _now()}
        return encode(self.line(reply, {**head, **fields})) + b"\n"

    def _last_fields(self, reason: FinishReason, generations: Sequence[Generation]) -> dict[str, Any]:
        (generation,) = generations
        known = generation_phases(generations)
        return {
            "done": True,
            "done_reason": "length" if reason is FinishReason.LENGTH else "stop",
            "total_duration": _nanoseconds(time.monotonic() - self._started),
            "load_duration": 0,
            "prompt_eval_count": generation.usage.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(known.prefill),
            "eval_count": generation.usage.completion_tokens,
            "eval_duration": _nanoseconds(known.decode),
        }

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> list[OllamaLogprob] | UnsetType:
        if not self._with_logprobs or not tokens:
            return UNSET
        return [
            OllamaLogprob(**_token(token), top_logprobs=[OllamaToken(**_token(other)) for other in token.top] or UNSET)
            for token in tokens
        ]


class ChatWriter(OllamaWriter):
    """Writes an answer of ``/api/chat``."""

    @staticmethod
    def line(reply: LineReply, fields: Mapping[str, Any]) -> OllamaChat:
        """The reply is a message."""
        calls: list[OllamaToolCall] | UnsetType = reply.calls or UNSET
        message = OllamaReply(content=reply.content, thinking=reply.thinking or UNSET, tool_calls=calls)
        return OllamaChat(message=message, **fields)


class GenerateWriter(OllamaWriter):
    """Writes an answer of ``/api/generate``."""

    @staticmethod
    def line(reply: LineReply, fields: Mapping[str, Any]) -> OllamaGenerated:
        """The reply is a text, and the thought before it."""
        return OllamaGenerated(response=reply.content, thinking=reply.thinking or UNSET, **fields)


class LoadWriter(AnswerWriter):
    """Writes that the model is loaded, where nothing else was asked.

    Args:
        writes: makes the writer of the endpoint's lines.
    """

    def __init__(self, writes: Callable[[AnswerHead], OllamaWriter], head: AnswerHead) -> None:
        self._writer = writes(head)
        self._model = head.model

    def headers(self, generations: Sequence[Generation]) -> Mapping[str, str]:
        """Where the time went."""
        return self._writer.headers(generations)

    def frames(self, _prompt: int, _delta: ChoiceDelta, _generations: Sequence[Generation]) -> list[bytes]:
        """Nothing: there is no text."""
        return []

    def end(self, _generations: Sequence[Generation]) -> list[bytes]:
        """The one line."""
        return [self._line() + b"\n"]

    def whole(self, _completions: Sequence[Sequence[Completion]], _generations: Sequence[Generation]) -> bytes:
        """The same as JSON."""
        return self._line()

    def _line(self) -> bytes:
        fields = {"model": self._model, "created_at": _now(), "done": True, "done_reason": "load"}
        return encode(self._writer.line(LineReply(), fields))


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "logprob": finite(token.logprob), "bytes": list(token.bytes)}


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _nanoseconds(seconds: float | None) -> int:
    return int((seconds or 0.0) * _NANOSECONDS)
