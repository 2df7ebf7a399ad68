"""Logs: one JSON object a line on stderr, with level, time, event and the request's id.

Lines of the standard library's loggers (uvicorn's among them) take the same way. Prompts and answers are never logged.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog
from structlog.typing import Processor

LogFormat = Literal["auto", "json", "console"]

_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
]


def configure_logging(level: str = "info", log_format: LogFormat = "auto") -> None:
    """Sets up logging for the whole process.

    Args:
        level: least severe level shown: ``debug``, ``info``, ``warning`` or ``error``.
        log_format: ``auto`` is for people on a terminal and JSON elsewhere.
    """
    for_people = sys.stderr.isatty() if log_format == "auto" else log_format == "console"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_SHARED, processors=_rendering(for_people))
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    _take_over_uvicorn()
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def bind_request_id(request_id: str) -> None:
    """Puts the id on every line that the present task logs from here on."""
    structlog.contextvars.bind_contextvars(request_id=request_id)


def bound_request_id() -> str:
    """The id that the present task logs with; empty if none was bound."""
    value: str = structlog.contextvars.get_contextvars().get("request_id", "")
    return value


def bind_api_key(name: str | None) -> None:
    """Puts the name of the request's API key on those lines too, or takes one off again."""
    if name is None:
        structlog.contextvars.unbind_contextvars("api_key")
    else:
        structlog.contextvars.bind_contextvars(api_key=name)


def _rendering(for_people: bool) -> list[Processor]:
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if for_people:
        # The default formatter shows the local variables of every frame: prompts, among others.
        plain = structlog.dev.plain_traceback
        return [strip, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    return [strip, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


def _take_over_uvicorn() -> None:
    """Its lines go the common way; the ledger's line stands in for its access log."""
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"
    logging.getLogger("uvicorn.access").disabled = True
