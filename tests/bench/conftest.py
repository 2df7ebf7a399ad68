"""The load generator against our own HTTP server over loopback, and against servers that behave otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.bench.client import Client
from app.bench.options import Options
from app.bench.prompts import Prompt, SyntheticPrompts
from tests.api.conftest import NO_TLS, Server, start_server
from tests.serving.rig import MODEL

SEED = 11


@contextlib.asynccontextmanager
async def client(url: str, **options: Any) -> AsyncIterator[Client]:
    """A client as a run has it."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=None, verify=NO_TLS) as http:  # noqa: S113 - as in a run
        yield Client(http, Options(url=url, **options), MODEL, SEED)


def synthetic(*, input_len: int = 40, output_len: int = 6, prefix_len: int = 0) -> SyntheticPrompts:
    """Prompts of bytes, which is what the tests' tokenizer has."""
    return SyntheticPrompts("ids", (input_len,), (output_len,), prefix_len, (32, 127))


def prompts(count: int, **shape: int) -> list[Prompt]:
    """The first ``count`` of them."""
    generated = synthetic(**shape).generate(str(SEED))
    return [next(generated) for _ in range(count)]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server of its own for each test: what its cache knows is part of what is tested."""
    async with start_server() as running_server:
        yield running_server
