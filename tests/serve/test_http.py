"""How connections are served."""

from __future__ import annotations

import asyncio
import socket

from app.api.protocol import HttpProtocol
from app.api.service import Service
from app.serve.compose import api_settings
from app.serve.http import drain_line, uvicorn_config
from app.serve.sockets import listen
from app.serving.served import Served, ServedModels
from app.serving.supervisor import LONGEST_STEP
from app.settings import Settings
from tests.serving.rig import MODEL, make_rig

LONGEST_REUSE = 60
"""Seconds for which common proxies and clients keep an idle connection to a server."""


def test_the_server_is_not_the_first_to_close_an_idle_connection() -> None:
    rig, settings = make_rig(), Settings.model_validate({})
    served = Served((MODEL,), rig.generator, rig.client, rig.client.progress_age, lambda: LONGEST_STEP)
    service = Service(ServedModels([served]), rig.metrics, api_settings(settings))
    config = uvicorn_config(service, settings)
    assert config.timeout_keep_alive > LONGEST_REUSE
    assert config.http is HttpProtocol


async def test_what_the_server_writes_leaves_at_once() -> None:
    """Nagle's algorithm would hold the second write of each answer back until the client's delayed ACK: 40 ms."""
    delays: asyncio.Queue[int] = asyncio.Queue()

    async def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        delays.put_nowait(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with listen("127.0.0.1", 0) as sock:
        async with await asyncio.start_server(accepted, sock=sock):
            _, writer = await asyncio.open_connection(*sock.getsockname())
            assert await delays.get() == 1
            writer.close()


def test_who_stops_a_server_is_told_what_it_waits_for() -> None:
    assert drain_line(2, 30.0, by_terminal=True) == (
        "stopping: waiting for 2 requests, at most 30 s; Ctrl-C again ends them now"
    )
    assert drain_line(1, 0.5, by_terminal=False) == "stopping: waiting for 1 request, at most 0.5 s"
    assert drain_line(0, 30.0, by_terminal=True) == "stopping: no requests are under way"
