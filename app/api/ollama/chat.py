"""``POST /api/chat``."""

from __future__ import annotations

from functools import partial
from typing import Any

from app.api.endpoint import Endpoint, ReadRequest
from app.api.ollama.conversation import read_turns
from app.api.ollama.openapi import ollama_answers
from app.api.ollama.options import ID_PREFIX, load_task, read_keep_alive, read_task, template_variables
from app.api.ollama.schemas.answers import OllamaChat
from app.api.ollama.schemas.bodies import OllamaChatBody
from app.api.ollama.writer import ChatWriter, LoadWriter
from app.api.openapi import takes
from app.tasks.prompts import Conversation

_EXAMPLES: dict[str, Any] = {
    "ollama_chat": {
        "summary": "One question",
        "value": {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "options": {"num_predict": 64}},
    }
}


def read_chat(body: OllamaChatBody) -> ReadRequest:
    """What a body asks for. Raises :class:`RequestError` 400."""
    stream = body.stream is not False
    keep_alive = read_keep_alive(body)
    if not body.messages:
        return ReadRequest(
            task=load_task(),
            writer=partial(LoadWriter, ChatWriter),
            stream=stream,
            model=body.model,
            keep_alive=keep_alive,
            unload=ChatWriter.unloaded if keep_alive == 0 else None,
        )
    turns = read_turns(body.messages)
    continues = turns[-1]["role"] == "assistant" and bool(turns[-1]["content"]) and "tool_calls" not in turns[-1]
    conversation = Conversation(
        messages=turns,
        add_generation_prompt=not continues,
        continue_final_message=continues,
        **template_variables(body),
    )
    return ReadRequest(
        task=read_task(body, conversation, "messages", body.tools or ()),
        writer=partial(ChatWriter, with_logprobs=bool(body.logprobs)),
        stream=stream,
        model=body.model,
        keep_alive=keep_alive,
    )


CHAT = Endpoint(
    path="/api/chat",
    name="ollama_chat",
    summary="Go on with a conversation, in Ollama's shapes",
    description="""Answers the last message, in lines of JSON or whole; goes on with it if it is the assistant's.

Without messages: says that the model is loaded.""",
    request_body=takes(OllamaChatBody, _EXAMPLES),
    responses=ollama_answers(OllamaChat, streams=True),
    schema=OllamaChatBody,
    read=read_chat,
    id_prefix=ID_PREFIX,
)
