"""Answers as the Messages protocol has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from app.api.anthropic.blocks import BlockStream, whole_blocks
from app.api.anthropic.schemas.answers import (
    AnthropicBlock,
    AnthropicMessage,
    AnthropicUsage,
    MessageDelta,
    MessageStart,
    MessageStop,
    StopDelta,
    ThinkingTokens,
)
from app.api.anthropic.schemas.bodies import MessagesBody, ThinkingAdaptive, ThinkingOn
from app.api.endpoint import AnswerHead, AnswerWriter
from app.api.json import encode
from app.api.timing import server_timing
from app.contract.request import FinishReason
from app.serving.generation import Completion, Generation
from app.serving.types import ChoiceDelta
from app.text.parsers.reply import CallDelta

ID_PREFIX = "msg"


class MessageWriter(AnswerWriter):
    """Writes one message."""

    def __init__(self, head: AnswerHead, body: MessagesBody) -> None:
        self._id = f"{ID_PREFIX}_{head.id.removeprefix(f'{ID_PREFIX}-')}"
        self._model = head.model
        self._max_tokens = body.max_tokens
        thinking = body.thinking
        hides = isinstance(thinking, ThinkingOn | ThinkingAdaptive) and thinking.display == "omitted"
        self._hides_thought = hides
        self._blocks = BlockStream(hides_thought=hides)
        self._started = False
        self._calls = False
        self._last: ChoiceDelta | None = None

    def headers(self, generations: Sequence[Generation]) -> Mapping[str, str]:
        """Where the time went."""
        return server_timing(generations)

    def frames(self, _prompt: int, delta: ChoiceDelta, generations: Sequence[Generation]) -> list[bytes]:
        """The message begins with the first text; what shows nothing makes no event."""
        if not delta.reply and delta.finish_reason is None:
            return []
        events: list[msgspec.Struct] = []
        if not self._started:
            self._started = True
            events.append(MessageStart(self._message([], generations[0], None, None)))
        for part in delta.reply:
            self._calls = self._calls or isinstance(part, CallDelta)
            events += self._blocks.push(part)
        self._last = delta
        return [_event(event) for event in events]

    def end(self, generations: Sequence[Generation]) -> list[bytes]:
        """The open block's end, why the message ended, and its usage."""
        (generation,) = generations
        if self._last is None:
            raise RuntimeError("a stream ends with its last delta")
        reason, sequence = self._stop(self._last, generation, calls=self._calls)
        delta = StopDelta(stop_reason=reason, stop_sequence=sequence)
        events = (*self._blocks.end(), MessageDelta(delta, _usage(generation)), MessageStop())
        return [_event(event) for event in events]

    def whole(self, completions: Sequence[Sequence[Completion]], generations: Sequence[Generation]) -> bytes:
        """JSON of the whole message."""
        ((completion,),) = completions
        (generation,) = generations
        reason, sequence = self._stop(completion, generation, calls=bool(completion.calls))
        blocks = whole_blocks(completion.parts, hides_thought=self._hides_thought)
        return encode(self._message(blocks, generation, reason, sequence))

    def _stop(self, part: ChoiceDelta | Completion, generation: Generation, *, calls: bool) -> tuple[str, str | None]:
        """Why the message ended, and the stop sequence that ended it."""
        if part.finish_reason is FinishReason.LENGTH:
            fitted = generation.request.params.max_tokens
            return "max_tokens" if fitted >= self._max_tokens else "model_context_window_exceeded", None
        if isinstance(part.stop_reason, str):
            return "stop_sequence", part.stop_reason
        return "tool_use" if calls else "end_turn", None

    def _message(
        self, blocks: list[AnthropicBlock], generation: Generation, reason: str | None, sequence: str | None
    ) -> AnthropicMessage:
        return AnthropicMessage(
            id=self._id,
            model=self._model,
            content=blocks,
            stop_reason=reason,
            stop_sequence=sequence,
            usage=_usage(generation),
        )


def _usage(generation: Generation) -> AnthropicUsage:
    usage = generation.usage
    return AnthropicUsage(
        input_tokens=usage.prompt_tokens - usage.cached_tokens,
        cache_read_input_tokens=usage.cached_tokens,
        output_tokens=usage.completion_tokens,
        output_tokens_details=ThinkingTokens(usage.reasoning_tokens),
    )


def _event(event: msgspec.Struct) -> bytes:
    name = event.__struct_config__.tag
    return f"event: {name}\ndata: ".encode() + encode(event) + b"\n\n"
