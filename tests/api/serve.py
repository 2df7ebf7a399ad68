"""A server in a process of its own, for tests that look at its memory: ``python -m tests.api.serve`` prints its URL."""

from __future__ import annotations

import asyncio

from tests.api.conftest import start_server


async def _serve() -> None:
    async with start_server() as server:
        print(server.url, flush=True)  # noqa: T201 - the parent reads it
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve())
