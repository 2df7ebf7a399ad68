"""Where the outputs of one request wait for the task that turns them into text."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from app.types import EngineOutput


class Arrival(NamedTuple):
    """An output and the instant it was read."""

    time: float
    output: EngineOutput


class Mailbox:
    """Outputs that wait for the one task that reads them."""

    def __init__(self) -> None:
        self._waiting: list[Arrival] = []
        self._filled = asyncio.Event()
        self.tokens = 0
        """Tokens that wait."""

    def put(self, output: EngineOutput) -> None:
        """Adds an output, stamped with the present instant."""
        self._waiting.append(Arrival(time.monotonic(), output))
        self.tokens += len(output.new_token_ids)
        self._filled.set()

    async def take(self) -> list[Arrival]:
        """Everything that waits, oldest first; at least one output."""
        await self._filled.wait()
        arrivals, self._waiting, self.tokens = self._waiting, [], 0
        self._filled.clear()
        return arrivals
