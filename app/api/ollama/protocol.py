"""Ollama's protocol: its routes, its errors."""

from __future__ import annotations

from app.api.endpoint import Protocol
from app.api.ollama import models
from app.api.ollama.chat import CHAT
from app.api.ollama.errors import error_event, write_error
from app.api.ollama.generate import GENERATE
from app.api.ollama.openapi import LINES
from app.api.ollama.schemas.answers import (
    OllamaChat,
    OllamaError,
    OllamaGenerated,
    OllamaModels,
    OllamaProcesses,
    OllamaShown,
    OllamaVersion,
)
from app.api.ollama.schemas.bodies import OllamaShowBody

OLLAMA = Protocol(
    tag=models.TAG,
    endpoints=(CHAT, GENERATE),
    routes=models.router,
    paths=frozenset(),
    below=frozenset({"/api"}),
    write_error=write_error,
    error_event=error_event,
    error_schema=OllamaError,
    answers=(OllamaChat, OllamaGenerated, OllamaModels, OllamaProcesses, OllamaShown, OllamaVersion),
    bodies=(OllamaShowBody,),
    stream_type=LINES,
    stream_comment=b" ",  # clients parse every line: white space before the next one is none
)
