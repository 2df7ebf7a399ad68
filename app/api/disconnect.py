"""Work that ends when the client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class UntilDisconnect(Response):
    """A response that ``work`` sends. The client's leaving cancels it, at any moment: queued, computing or sending.

    Whatever ``work`` holds must be given back by its own ``finally`` blocks; they have run when the call returns.
    An exception that it raises before it sent anything becomes an HTTP error as if the route had raised it.
    """

    def __init__(self, work: Callable[[Send], Awaitable[None]]) -> None:
        super().__init__()
        self._work = work

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the work against the client's patience."""
        worker = asyncio.ensure_future(self._work(send))
        watcher = asyncio.create_task(_wait_gone(receive))
        try:
            await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            worker.cancel()
            watcher.cancel()
            await asyncio.wait({worker, watcher})
        for task in (worker, watcher):
            if not task.cancelled():
                task.result()


async def _wait_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
