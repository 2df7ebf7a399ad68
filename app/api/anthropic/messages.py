"""``POST /v1/messages``."""

from __future__ import annotations

from functools import partial

from app.api.anthropic.conversation import read_conversation
from app.api.anthropic.openapi import message_answers
from app.api.anthropic.options import answer_form, reply_options
from app.api.anthropic.schemas.answers import EVENTS, AnthropicMessage
from app.api.anthropic.schemas.bodies import MessagesBody
from app.api.anthropic.writer import ID_PREFIX, MessageWriter
from app.api.endpoint import Endpoint, ReadRequest
from app.api.openapi import takes
from app.tasks.generate import GenerateTask, SamplingOptions

_NAMES = {"prompt": "messages", "stop": "stop_sequences", "reasoning_budget": "thinking.budget_tokens"}
_EXAMPLES = {
    "question": {
        "summary": "One question",
        "value": {"max_tokens": 64, "messages": [{"role": "user", "content": "Why is the sky blue?"}]},
    },
    "tool": {
        "summary": "A tool",
        "value": {
            "max_tokens": 256,
            "system": "Answer in one sentence.",
            "messages": [{"role": "user", "content": "What is the weather in Oslo?"}],
            "tools": [
                {
                    "name": "get_weather",
                    "description": "The weather of a place",
                    "input_schema": {
                        "type": "object",
                        "properties": {"place": {"type": "string"}},
                        "required": ["place"],
                    },
                }
            ],
        },
    },
}


def read_messages(body: MessagesBody) -> ReadRequest:
    """What a body asks for. Raises :class:`RequestError` 400."""
    form = answer_form(body)
    task = GenerateTask(
        prompts=[read_conversation(body)],
        sampling=SamplingOptions(
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            stop=tuple(body.stop_sequences or ()),
        ),
        default_max_tokens=body.max_tokens,  # clients ask for as many as the models of others have
        form=form.grammar if form else None,
        reply=reply_options(body),
        names={**_NAMES, "form": form.param if form else "form"},
    )
    return ReadRequest(
        task=task,
        writer=partial(MessageWriter, body=body),
        stream=bool(body.stream),
        model=body.model,
    )


MESSAGES = Endpoint(
    path="/v1/messages",
    name="create_message",
    summary="Go on with a conversation, in Anthropic's shapes",
    description="""Answers the last message, whole or as a stream of events; goes on with it if it is the assistant's.

`anthropic-version` and `anthropic-beta` may be sent and change nothing.""",
    request_body=takes(MessagesBody, _EXAMPLES),
    responses=message_answers(AnthropicMessage, EVENTS),
    schema=MessagesBody,
    read=read_messages,
    id_prefix=ID_PREFIX,
)
