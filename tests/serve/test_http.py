"""How connections are served."""

from __future__ import annotations

import asyncio
import socket

from app.api.protocol import HttpProtocol
from app.api.service import Service
from app.serve.compose import api_settings
from app.serve.http import uvicorn_config
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
