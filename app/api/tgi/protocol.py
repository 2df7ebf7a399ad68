"""The protocol of text-generation-inference: its routes, its errors."""

from __future__ import annotations

from app.api.endpoint import Protocol
from app.api.tgi import info
from app.api.tgi.errors import error_event, write_error
from app.api.tgi.generate import EITHER, STREAM, WHOLE
from app.api.tgi.schemas import FlatError, Generated, Info, StreamEvent

TGI = Protocol(
    tag=info.TAG,
    endpoints=(WHOLE, STREAM, EITHER),
    routes=info.router,
    paths=frozenset({WHOLE.path, STREAM.path, EITHER.path, "/info"}),
    write_error=write_error,
    error_event=error_event,
    error_schema=FlatError,
    answers=(Generated, StreamEvent, Info),
)
