"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import msgspec
from msgspec import UNSET

from app.api.endpoint import AnswerHead, Endpoint, ReadRequest
from app.api.forms import read_form
from app.api.openai.best_of import num_choices
from app.api.openai.logprobs import chat_logprobs
from app.api.openai.messages import last_answer, read_conversation
from app.api.openai.openapi import answers
from app.api.openai.options import answer_limits, check_stream_options, check_whole, sampling_options
from app.api.openai.schemas.chat import (
    ChatBody,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    Delta,
)
from app.api.openai.schemas.usage import Usage
from app.api.openai.tools import ReplyShape, read_reply, reply_names
from app.api.openai.writer import ChunkUsage, OpenAIWriter
from app.api.openapi import takes
from app.errors import RequestError
from app.serving.generation import Completion, Generation
from app.serving.types import ChoiceDelta, TokenLogprob
from app.tasks.generate import GenerateTask
from app.text.parsers.reply import CallDelta

_EXAMPLES = {
    "question": {
        "summary": "One question",
        "value": {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_completion_tokens": 64},
    },
    "schema": {
        "summary": "An answer that is valid by a schema",
        "value": {
            "messages": [{"role": "user", "content": "Which river runs through Paris?"}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "river",
                    "schema": {"type": "object", "properties": {"river": {"type": "string"}}, "required": ["river"]},
                },
            },
            "max_completion_tokens": 128,
        },
    },
    "stream": {
        "summary": "A stream with usage",
        "value": {
            "messages": [
                {"role": "system", "content": "Answer in one sentence."},
                {"role": "user", "content": "Name three rivers."},
            ],
            "temperature": 0,
            "max_completion_tokens": 128,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    },
    "tools": {
        "summary": "A tool to call",
        "value": {
            "messages": [{"role": "user", "content": "How warm is it in Lima?"}],
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "get_weather",
                        "parameters": {
                            "type": "object",
                            "properties": {"city": {"type": "string"}},
                            "required": ["city"],
                        },
                    },
                }
            ],
            "max_completion_tokens": 128,
        },
    },
}


def read_chat(body: ChatBody) -> ReadRequest:
    """What a body asks for. Raises :class:`RequestError` 400."""
    check_stream_options(body)
    check_whole(body)
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs.", code="invalid_value", param="top_logprobs")
    form = read_form(body)
    reply = read_reply(body)
    task = GenerateTask(
        prompts=[read_conversation(body.messages, body, keep_last=body.truncate_prompt_tokens)],
        sampling=sampling_options(body, logprobs=(body.top_logprobs or 0) if body.logprobs else None),
        **answer_limits(body),
        n=num_choices(body),
        form=form.grammar if form else None,
        reply=reply,
        priority=body.priority or 0,
        cache_salt=body.cache_salt or "",
        prediction=_predicted(body),
        names={
            "prompt": "messages",
            "logprobs": "top_logprobs",
            "n": "n" if body.best_of is None else "best_of",
            "form": form.param if form else "form",
            **reply_names(body),
        },
    )
    return ReadRequest(
        task=task,
        writer=partial(ChatWriter, body=body),
        stream=bool(body.stream),
        model=body.model,
        timeout=body.timeout,
    )


def _predicted(body: ChatBody) -> str:
    """Text of the body's prediction; empty where there is none."""
    if body.prediction is None:
        return ""
    content = body.prediction.content
    return content if isinstance(content, str) else "".join(part.text for part in content)


class ChatWriter(OpenAIWriter):
    """Writes one chat answer."""

    def __init__(self, head: AnswerHead, body: ChatBody) -> None:
        super().__init__(head, body)
        self._with_logprobs = bool(body.logprobs)
        self._chunk_made = False
        self._echoed = last_answer(body.messages) if body.echo else ""
        self._begun: set[int] = set()
        self._called: set[int] = set()
        self._shape = ReplyShape(body)

    def chunks(self, prompt: int, delta: ChoiceDelta, generation: Generation, usage: ChunkUsage) -> list[ChatChunk]:  # noqa: ARG002
        """The role comes with the first part. What shows nothing makes no chunk but at the end, or for its tokens."""
        token_ids = self.token_ids(delta.token_ids)
        if any(isinstance(part, CallDelta) for part in delta.reply):
            self._called.add(delta.index)
        shown = self._shape.deltas(delta.reply)
        if not (shown or delta.finish_reason or (self._with_logprobs and delta.tokens) or token_ids):
            return []
        shown = shown or [Delta()]
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            shown = self._opened(shown)
        last = len(shown) - 1
        finish_reason = self._shape.finish_reason(delta.finish_reason, called=delta.index in self._called)
        choices = [
            ChatChunkChoice(
                index=delta.index,
                delta=each,
                logprobs=self._logprobs(delta.tokens if place == 0 else []),
                finish_reason=finish_reason if place == last else None,
                token_ids=token_ids if place == 0 else UNSET,
            )
            for place, each in enumerate(shown)
        ]
        return [self._chunk([choice], usage) for choice in choices]

    def _opened(self, shown: list[Delta]) -> list[Delta]:
        """The first deltas of a choice, with its role, and with the text that is echoed."""
        if self._echoed:
            content = shown[0].content if isinstance(shown[0].content, str) else ""
            if content or shown[0] == Delta():
                shown = shown[1:]
            return [Delta(role="assistant", content=self._echoed + content), *shown]
        if shown[0] == Delta():
            return [Delta(role="assistant", content="")]
        return [msgspec.structs.replace(shown[0], role="assistant"), *shown[1:]]

    def usage_chunk(self, usage: Usage) -> ChatChunk:
        """The chunk without choices."""
        return self._chunk([], usage)

    def answer(self, completions: Sequence[Sequence[Completion]], usage: Usage) -> ChatCompletion:
        """All choices of the one conversation."""
        choices = [
            ChatChoice(
                index=completion.index,
                message=self._shape.message(completion, self._echoed),
                logprobs=self._logprobs(completion.tokens),
                finish_reason=self._shape.finish_reason(completion.finish_reason, called=bool(completion.calls)),
                token_ids=self.token_ids(completion.token_ids),
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
            prompt_logprobs=self.prompt_logprobs(completions[0][0]),
            prompt_token_ids=self.token_ids(head.prompts[0].token_ids),
        )

    def _chunk(self, choices: list[ChatChunkChoice], usage: ChunkUsage) -> ChatChunk:
        head = self.head
        is_first, self._chunk_made = not self._chunk_made, True
        return ChatChunk(
            id=head.id,
            created=head.created,
            model=head.model,
            system_fingerprint=head.fingerprint,
            choices=choices,
            usage=usage,
            prompt_token_ids=self.token_ids(head.prompts[0].token_ids) if is_first else UNSET,
        )

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> ChatLogprobs | None:
        return chat_logprobs(tokens, as_ids=self._as_ids) if self._with_logprobs else None


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
