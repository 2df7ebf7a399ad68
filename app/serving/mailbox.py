"""Where the outputs of one request wait for the task that reads them."""

from __future__ import annotations

import asyncio
import time
from typing import Generic, NamedTuple, TypeVar

from app.contract.frames import EncodeOutput, EngineError, EngineOutput
from app.contract.request import FinishReason

OutputT = TypeVar("OutputT", EngineOutput, EncodeOutput)


class Arrival(NamedTuple, Generic[OutputT]):
    """An output and the instant it was read."""

    time: float
    output: OutputT


class Mailbox(Generic[OutputT]):
    """Outputs that wait for the one task that reads them.

    Args:
        kind: class of the outputs.
    """

    def __init__(self, kind: type[OutputT]) -> None:
        self._kind: type[OutputT] = kind
        self._waiting: list[Arrival[OutputT]] = []
        self._filled = asyncio.Event()
        self.tokens = 0
        """Tokens that wait."""

    def put(self, output: OutputT) -> None:
        """Adds an output, stamped with the present instant."""
        self._waiting.append(Arrival(time.monotonic(), output))
        if isinstance(output, EngineOutput):
            self.tokens += len(output.new_token_ids)
        self._filled.set()

    def fail(self, request_id: str, error: EngineError) -> None:
        """Adds the output that ends one of its requests with an error."""
        self.put(self._kind(request_id=request_id, finish_reason=FinishReason.ERROR, error=error))

    async def take(self) -> list[Arrival[OutputT]]:
        """Everything that waits, oldest first; at least one output."""
        await self._filled.wait()
        arrivals, self._waiting, self.tokens = self._waiting, [], 0
        self._filled.clear()
        return arrivals
