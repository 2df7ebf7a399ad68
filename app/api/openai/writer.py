"""What the answers of chat and completions have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from app.api.endpoint import AnswerHead
from app.api.json import encode
from app.api.openai.schemas.generation import StreamOptions
from app.api.openai.schemas.usage import Usage, total_usage
from app.api.sse import DATA_EVENT
from app.api.timing import server_timing
from app.serving.generation import Completion, Generation
from app.serving.types import ChoiceDelta

ChunkUsage = Usage | UnsetType | None
"""In a stream's chunks: the usage so far, null until the last chunk, or no such field."""
_DONE = DATA_EVENT % b"[DONE]"


class OpenAIWriter(ABC):
    """Writes one answer in structs that a subclass makes.

    Args:
        stream_options: what a stream carries besides the text.
    """

    def __init__(self, head: AnswerHead, stream_options: StreamOptions | None) -> None:
        self.head = head
        self._include_usage = bool(stream_options and stream_options.include_usage)
        self._continuous_usage = bool(stream_options and stream_options.continuous_usage_stats)

    @abstractmethod
    def chunks(
        self, prompt: int, delta: ChoiceDelta, generation: Generation, usage: ChunkUsage
    ) -> Sequence[msgspec.Struct]:
        """The chunks for a delta of a prompt's generation."""

    @abstractmethod
    def usage_chunk(self, usage: Usage) -> msgspec.Struct:
        """The chunk with the usage and no choices."""

    @abstractmethod
    def answer(self, completions: Sequence[Sequence[Completion]], usage: Usage) -> msgspec.Struct:
        """The whole answer, given the choices of each prompt."""

    def headers(self, generations: Sequence[Generation]) -> Mapping[str, str]:
        """Where the time went."""
        return server_timing(generations)

    def frames(self, prompt: int, delta: ChoiceDelta, generations: Sequence[Generation]) -> list[bytes]:
        """One event a chunk."""
        usage: ChunkUsage = None if self._include_usage else UNSET
        if self._continuous_usage:
            usage = _usage(generations)
        return [DATA_EVENT % encode(chunk) for chunk in self.chunks(prompt, delta, generations[prompt], usage)]

    def end(self, generations: Sequence[Generation]) -> list[bytes]:
        """The usage, if it was asked for, and ``[DONE]``."""
        if not self._include_usage:
            return [_DONE]
        return [DATA_EVENT % encode(self.usage_chunk(_usage(generations))), _DONE]

    def whole(self, completions: Sequence[Sequence[Completion]], generations: Sequence[Generation]) -> bytes:
        """JSON of the whole answer."""
        return encode(self.answer(completions, _usage(generations)))


def _usage(generations: Sequence[Generation]) -> Usage:
    return total_usage(generation.usage for generation in generations)
