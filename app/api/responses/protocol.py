"""The Responses protocol: its routes, its errors."""

from __future__ import annotations

from app.api.endpoint import Protocol
from app.api.responses import routes
from app.api.responses.create import CREATE
from app.api.responses.errors import error_event, write_error
from app.api.responses.schemas.answer import (
    DeletedResponse,
    InputTokens,
    ItemList,
    ResponseEvent,
    ResponseObject,
    ResponsesError,
)

RESPONSES = Protocol(
    tag=routes.TAG,
    endpoints=(CREATE,),
    routes=routes.router,
    paths=frozenset({CREATE.path}),
    below=frozenset({CREATE.path}),
    write_error=write_error,
    error_event=error_event,
    error_schema=ResponsesError,
    answers=(ResponseObject, ResponseEvent, ItemList, DeletedResponse, InputTokens),
)
