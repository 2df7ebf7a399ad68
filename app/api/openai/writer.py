"""What the answers of chat and completions have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from app.api.endpoint import AnswerHead, AnswerWriter
from app.api.json import encode
from app.api.openai.best_of import best_choices
from app.api.openai.logprobs import prompt_logprobs
from app.api.openai.schemas.generation import GenerationBody, PromptLogprobs
from app.api.openai.schemas.usage import Usage, total_usage
from app.api.sse import DATA_EVENT
from app.api.timing import server_timing
from app.serving.generation import Completion, Generation
from app.serving.types import ChoiceDelta

ChunkUsage = Usage | UnsetType | None
"""In a stream's chunks: the usage so far, null until the last chunk, or no such field."""
_DONE = DATA_EVENT % b"[DONE]"


class OpenAIWriter(AnswerWriter):
    """Writes one answer in structs that a subclass makes.

    Args:
        body: what was asked for.
    """

    def __init__(self, head: AnswerHead, body: GenerationBody) -> None:
        stream_options = body.stream_options
        self.head = head
        self._n = body.n or 1
        self._with_ids = bool(body.return_token_ids)
        self._as_ids = bool(body.return_tokens_as_token_ids)
        self._prompt_logprobs = body.prompt_logprobs
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

    def token_ids(self, token_ids: list[int]) -> list[int] | UnsetType:
        """Token ids, if they were asked for."""
        return token_ids if self._with_ids else UNSET

    def prompt_logprobs(self, completion: Completion) -> PromptLogprobs | UnsetType:
        """Log-probabilities of a choice's prompt, if they were asked for."""
        if self._prompt_logprobs is None:
            return UNSET
        return prompt_logprobs(completion.prompt_logprobs or (), self._prompt_logprobs)

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
        chosen = [best_choices(each, self._n) for each in completions]
        return encode(self.answer(chosen, _usage(generations)))


def _usage(generations: Sequence[Generation]) -> Usage:
    return total_usage(generation.usage for generation in generations)
