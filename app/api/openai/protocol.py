"""The OpenAI protocol: its routes, its errors."""

from __future__ import annotations

from app.api.endpoint import Protocol
from app.api.openai import models
from app.api.openai.chat import CHAT
from app.api.openai.completions import COMPLETIONS
from app.api.openai.errors import error_event, write_error
from app.api.openai.schemas.chat import ChatChunk, ChatCompletion
from app.api.openai.schemas.completions import Completion
from app.api.openai.schemas.errors import ErrorResponse
from app.api.openai.schemas.models import ModelCard, ModelList

OPENAI = Protocol(
    tag="OpenAI",
    endpoints=(CHAT, COMPLETIONS),
    routes=models.router,
    paths=frozenset({CHAT.path, COMPLETIONS.path}),
    write_error=write_error,
    error_event=error_event,
    error_schema=ErrorResponse,
    answers=(ChatCompletion, ChatChunk, Completion, ModelList, ModelCard),
)
