"""The HTTP server: how the application is served, and how it drains."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import socket
from types import FrameType
from typing import Protocol

import click
import uvicorn

from app.api.app import create_app
from app.api.protocol import HttpProtocol
from app.api.service import Service
from app.settings import Settings

_KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: longer than the clients and proxies that reuse it keep it (60 at most of
them), or a request now and then meets its closing."""
_LAST_EVENTS = 5.0
"""Seconds that streams cut by the drain's deadline get to send their error event."""


def uvicorn_config(service: Service, settings: Settings) -> uvicorn.Config:
    """How the application is served."""
    return uvicorn.Config(
        create_app(service),
        http=HttpProtocol,
        ws="none",
        timeout_keep_alive=_KEEP_ALIVE,
        log_config=None,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout + _LAST_EVENTS),
        lifespan="off",
        server_header=False,
    )


class Engines(Protocol):
    """What runs the engine, or all of them."""

    async def stop(self) -> None:
        """Ends them; what they work on is answered with errors."""


class DrainingServer(uvicorn.Server):
    """uvicorn that drains: readiness turns 503 first, the listener closes later, streams get time to finish.

    Streams that outlast ``drain_timeout`` lose the engine, so that each ends with an error event instead of a cut.
    """

    def __init__(self, service: Service, engines: Engines, settings: Settings) -> None:
        super().__init__(uvicorn_config(service, settings))
        self._service = service
        self._engines = engines
        self._drain_delay = settings.drain_delay
        self._drain_timeout = settings.drain_timeout
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until a signal's drain is over."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)
        if self._drain is not None:
            self._drain.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Begins to drain; uvicorn's own handler would end the process by the signal instead of exit code 0."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._on_signal, sig)

    def _on_signal(self, sig: int) -> None:
        if self._drain is None:
            self._drain = asyncio.create_task(self._drain_then_exit(), name="drain")
            seconds = self._drain_delay + self._drain_timeout
            with contextlib.suppress(OSError):  # nobody reads any more
                click.echo(drain_line(self._service.live.count, seconds, by_terminal=sig == signal.SIGINT))
        elif sig == signal.SIGINT:
            self.should_exit = self.force_exit = True  # a second Ctrl-C means now

    async def _drain_then_exit(self) -> None:
        self._service.draining = True
        await asyncio.sleep(self._drain_delay)
        self._service.models.drain()
        self.should_exit = True
        await asyncio.sleep(self._drain_timeout)
        await self._engines.stop()


def drain_line(requests: int, seconds: float, *, by_terminal: bool) -> str:
    """What a server that was told to stop says that it waits for.

    Args:
        requests: that are under way.
        seconds: that it waits at most.
        by_terminal: Ctrl-C told it, and a second one ends it now.
    """
    if not requests:
        return "stopping: no requests are under way"
    again = "; Ctrl-C again ends them now" if by_terminal else ""
    return f"stopping: waiting for {requests} request{'' if requests == 1 else 's'}, at most {seconds:g} s{again}"
