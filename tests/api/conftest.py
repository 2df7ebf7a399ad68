"""A real server on loopback in the test's own event loop: the whole application over a real engine with a fake runner.

Clients are as real: httpx, the openai SDK, raw sockets.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import queue
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from starlette.types import ASGIApp

from app.api.app import create_app
from app.api.protocol import HttpProtocol
from app.api.service import ApiSettings, Service
from app.serving.served import Served, ServedModels
from app.serving.supervisor import LONGEST_STEP
from app.text.chat_template import ChatTemplate
from app.text.parsers.formats import ReplyFormat
from app.text.parsers.thoughts import THOUGHTS
from tests.byte_tokenizer import CHATML_TEMPLATE, EOS_ID, IM_START_ID
from tests.fakes import NextToken
from tests.serving.rig import MODEL, Rig, make_rig, running

TIMEOUT = 20.0
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Spares each client the loading of certificates, which takes longer than most tests."""


@dataclass
class Server:
    """A running server and what is inside it."""

    url: str
    service: Service
    rig: Rig
    http: httpx.AsyncClient
    openai: openai.AsyncOpenAI

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, for raw sockets."""
        url = httpx.URL(self.url)
        return url.host, url.port or 0

    async def post(self, path: str, body: object = None, **kwargs: Any) -> httpx.Response:
        """Posts JSON."""
        return await self.http.post(path, json=body, **kwargs)


@contextlib.asynccontextmanager
async def listening(app: ASGIApp) -> AsyncIterator[str]:
    """Serves ``app`` on a free port of loopback; yields the URL."""
    sock = socket.socket(proto=socket.IPPROTO_TCP)
    sock.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=HttpProtocol, log_config=None, access_log=False, lifespan="off")
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[assignment,method-assign]
    serving = asyncio.create_task(server.serve([sock]))
    try:
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.001)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


@contextlib.asynccontextmanager
async def clients(url: str) -> AsyncIterator[tuple[httpx.AsyncClient, openai.AsyncOpenAI]]:
    async with (
        httpx.AsyncClient(base_url=url, timeout=TIMEOUT, verify=NO_TLS) as http,
        openai.DefaultAsyncHttpxClient(verify=NO_TLS) as transport,
        openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT, http_client=transport
        ) as sdk,
    ):
        yield http, sdk


@contextlib.asynccontextmanager
async def serve_rig(
    rig: Rig, settings: ApiSettings | None = None, *, names: tuple[str, ...] = (MODEL,), any_name: bool = False
) -> AsyncIterator[Server]:
    """An HTTP server over a text side, under the names given; ``any_name``: and under all others."""
    rig.generator.chat_template = ChatTemplate(CHATML_TEMPLATE)
    served = Served(names, rig.generator, rig.client, rig.client.progress_age, lambda: LONGEST_STEP)
    service = Service(ServedModels([served], any_name=any_name), rig.metrics, settings or ApiSettings())
    async with listening(create_app(service)) as url, clients(url) as (http, sdk):
        yield Server(url, service, rig, http, sdk)


@contextlib.asynccontextmanager
async def start_server(settings: ApiSettings | None = None, **rig_options: Any) -> AsyncIterator[Server]:
    """A server with an engine; ``rig_options`` are those of :func:`tests.serving.rig.running`."""
    async with running(**rig_options) as rig, serve_rig(rig, settings) as server:
        yield server


@contextlib.asynccontextmanager
async def start_server_without_engine(settings: ApiSettings | None = None) -> AsyncIterator[Server]:
    """A server whose engine has not come up."""
    async with serve_rig(make_rig(), settings) as server:
        yield server


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server that says ``héllo wörld, 你好! `` over and over, from wherever the number of tokens before puts it."""
    async with start_server() as running_server:
        yield running_server


@pytest.fixture(scope="package")
def threaded_server() -> Iterator[Server]:
    """One server in a thread of its own, for all tests that leave no trace in it."""
    started: queue.SimpleQueue[tuple[Server, asyncio.AbstractEventLoop, asyncio.Event]] = queue.SimpleQueue()

    async def serve() -> None:
        stop = asyncio.Event()
        async with start_server() as running_server:
            started.put((running_server, asyncio.get_running_loop(), stop))
            await stop.wait()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        serving = pool.submit(asyncio.run, serve())
        running_server, loop, stop = started.get(timeout=TIMEOUT)
        yield running_server
        loop.call_soon_threadsafe(stop.set)
        serving.result(TIMEOUT)


@pytest.fixture
async def shared_server(threaded_server: Server) -> AsyncIterator[Server]:
    """The server in a thread, with clients in the test's own loop."""
    async with clients(threaded_server.url) as (http, sdk):
        yield dataclasses.replace(threaded_server, http=http, openai=sdk)


def answering(text: str) -> NextToken:
    """A "model" that answers any conversation with ``text``."""
    script = text.encode()
    turn = len("assistant\n") + 1

    def next_token(context: Sequence[int]) -> int:
        place = len(context) - (len(context) - 1 - list(reversed(context)).index(IM_START_ID)) - turn
        return script[place] if place < len(script) else EOS_ID

    return next_token


@contextlib.asynccontextmanager
async def replying(text: str) -> AsyncIterator[Server]:
    """A server that answers with ``text``."""
    async with start_server(next_token=answering(text), num_blocks=512, max_model_len=4096) as server:
        yield server


@contextlib.asynccontextmanager
async def thinking(text: str) -> AsyncIterator[Server]:
    """A server of a model that thinks."""
    async with replying(text) as server:
        generator = server.rig.generator
        think = next(each for each in THOUGHTS if each.name == "think")
        generator.reply_format = ReplyFormat(generator.reply_format.calls, think)
        yield server
