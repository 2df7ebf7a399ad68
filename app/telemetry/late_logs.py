"""Logs of a process that seldom has any: what writes them is imported with the first line."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.telemetry.logs import LogFormat


def log_late(level: str, log_format: LogFormat) -> None:
    """As :func:`app.telemetry.logs.configure_logging`, which the first line calls that is shown."""
    root = logging.getLogger()
    root.handlers[:] = [_First(level, log_format)]
    root.setLevel(level.upper())


class _First(logging.Handler):
    """Makes place for the real one."""

    def __init__(self, level: str, log_format: LogFormat) -> None:
        super().__init__()
        self._arguments = level, log_format

    def emit(self, record: logging.LogRecord) -> None:
        from app.telemetry.logs import configure_logging

        configure_logging(*self._arguments)
        logging.getLogger(record.name).handle(record)
