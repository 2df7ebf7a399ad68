"""The Messages protocol: its routes, its errors."""

from __future__ import annotations

from app.api.anthropic import count
from app.api.anthropic.errors import error_event, write_error
from app.api.anthropic.messages import MESSAGES
from app.api.anthropic.schemas.answers import EVENTS, AnthropicError, AnthropicMessage, TokenCount
from app.api.anthropic.schemas.bodies import CountTokensBody
from app.api.endpoint import Protocol

ANTHROPIC = Protocol(
    tag=count.TAG,
    endpoints=(MESSAGES,),
    routes=count.router,
    paths=frozenset({MESSAGES.path, count.PATH}),
    write_error=write_error,
    error_event=error_event,
    error_schema=AnthropicError,
    answers=(AnthropicMessage, *EVENTS, TokenCount),
    stream_comment=b'event: ping\ndata: {"type":"ping"}\n\n',
    bodies=(CountTokensBody,),
    request_id_header="request-id",
)
