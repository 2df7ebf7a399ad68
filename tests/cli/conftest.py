"""Verbs that ask a server, against our own over loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.api.conftest import Server, start_server


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server of its own for each test: what its cache knows is part of what is tested."""
    async with start_server() as running_server:
        yield running_server
