"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from app.api.endpoint import AnswerHead, Endpoint, ReadRequest
from app.api.openai.logprobs import chat_logprobs
from app.api.openai.messages import read_conversation
from app.api.openai.openapi import answers
from app.api.openai.options import check_stream_options, sampling_options
from app.api.openai.schemas.chat import (
    AssistantMessage,
    ChatBody,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    Delta,
)
from app.api.openai.schemas.generation import StreamOptions
from app.api.openai.schemas.usage import Usage
from app.api.openai.writer import ChunkUsage, OpenAIWriter
from app.api.openapi import takes
from app.errors import RequestError
from app.serving.generation import Completion, Generation
from app.serving.types import ChoiceDelta, TokenLogprob
from app.tasks.generate import GenerateTask

_EXAMPLES = {
    "question": {
        "summary": "One question",
        "value": {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_completion_tokens": 64},
    },
    "stream": {
        "summary": "A stream with usage",
        "value": {
            "messages": [
                {"role": "system", "content": "Answer in one sentence."},
                {"role": "user", "content": "Name three rivers."},
            ],
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    },
}


def read_chat(body: ChatBody) -> ReadRequest:
    """What a body asks for. Raises :class:`RequestError` 400."""
    check_stream_options(body)
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs.", code="invalid_value", param="top_logprobs")
    task = GenerateTask(
        prompts=[read_conversation(body.messages, body)],
        sampling=sampling_options(body, logprobs=(body.top_logprobs or 0) if body.logprobs else None),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        n=body.n or 1,
        priority=body.priority or 0,
        cache_salt=body.cache_salt or "",
        names={"prompt": "messages", "logprobs": "top_logprobs"},
    )
    return ReadRequest(
        task=task,
        writer=partial(ChatWriter, stream_options=body.stream_options, with_logprobs=bool(body.logprobs)),
        stream=bool(body.stream),
        model=body.model,
        timeout=body.timeout,
    )


class ChatWriter(OpenAIWriter):
    """Writes one chat answer."""

    def __init__(self, head: AnswerHead, *, stream_options: StreamOptions | None, with_logprobs: bool) -> None:
        super().__init__(head, stream_options)
        self._with_logprobs = with_logprobs
        self._begun: set[int] = set()

    def chunks(self, prompt: int, delta: ChoiceDelta, generation: Generation, usage: ChunkUsage) -> list[ChatChunk]:  # noqa: ARG002
        """The role comes with the first text; what shows nothing makes no chunk."""
        if not (delta.text or delta.finish_reason or (self._with_logprobs and delta.tokens)):
            return []
        content = Delta(content=delta.text)
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            content = Delta(role="assistant", content=delta.text)
        choice = ChatChunkChoice(
            index=delta.index,
            delta=content,
            logprobs=self._logprobs(delta.tokens),
            finish_reason=delta.finish_reason and delta.finish_reason.value,
        )
        return [self._chunk([choice], usage)]

    def usage_chunk(self, usage: Usage) -> ChatChunk:
        """The chunk without choices."""
        return self._chunk([], usage)

    def answer(self, completions: Sequence[Sequence[Completion]], usage: Usage) -> ChatCompletion:
        """All choices of the one conversation."""
        choices = [
            ChatChoice(
                index=completion.index,
                message=AssistantMessage(content=completion.text),
                logprobs=self._logprobs(completion.tokens),
                finish_reason=completion.finish_reason and completion.finish_reason.value,
            )
            for completion in completions[0]
        ]
        head = self.head
        return ChatCompletion(
            id=head.id,
            created=head.created,
            model=head.model,
            choices=choices,
            usage=usage,
            system_fingerprint=head.fingerprint,
        )

    def _chunk(self, choices: list[ChatChunkChoice], usage: ChunkUsage) -> ChatChunk:
        head = self.head
        return ChatChunk(
            id=head.id,
            created=head.created,
            model=head.model,
            system_fingerprint=head.fingerprint,
            choices=choices,
            usage=usage,
        )

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> ChatLogprobs | None:
        return chat_logprobs(tokens) if self._with_logprobs else None


CHAT = Endpoint(
    path="/v1/chat/completions",
    name="create_chat_completion",
    summary="Go on with a conversation",
    description="""Answers the last message, whole or as a stream of chunks.

Fields that nobody knows are named back in `X-Ignored-Params`; `?strict=true` refuses them.""",
    request_body=takes(ChatBody, _EXAMPLES),
    responses=answers(ChatCompletion, ChatChunk),
    schema=ChatBody,
    read=read_chat,
    id_prefix="chatcmpl",
)
