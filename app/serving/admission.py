"""Who may send work to the engine. Everything is checked before anything is sent."""

from __future__ import annotations

import math

from app.engine.admission import Limits, check
from app.serving.engine_client import EngineClient
from app.serving.errors import RequestError
from app.types import EngineError, EngineReady, EngineRequest

MAX_RETRY_AFTER = 60.0

# Engine error code -> HTTP status; what is not listed is the engine's fault, and trying again would not help.
_STATUS = {
    "invalid_request": 400,
    "context_length_exceeded": 400,
    "slow_consumer": 408,
    "engine_restarted": 503,
    "deadline_exceeded": 504,
}
_RESTART_RETRY_AFTER = 1.0


class Admission:
    """Refuses what the engine could not serve, and what it could serve only much later.

    Args:
        max_num_seqs: sequences the engine runs at once.
        max_queue: sequences that may wait beyond those.
    """

    def __init__(self, client: EngineClient, *, max_num_seqs: int, max_queue: int) -> None:
        self._client = client
        self._max_num_seqs = max_num_seqs
        self._capacity = max_num_seqs + max_queue

    def check_accepting(self, n: int = 1) -> None:
        """Is there an engine, and room for ``n`` more sequences?

        Raises:
            RequestError: 503 while there is no engine, 429 when the queue is full; 400 for more than ever fit.
        """
        if (error := self._client.unavailable()) is not None:
            raise error
        if n > self._capacity:
            raise RequestError(f"{n} sequences exceed the {self._capacity} that this server holds at once.", param="n")
        excess = self._client.in_flight + n - self._capacity
        if excess > 0:
            raise RequestError(
                f"The server is overloaded: {self._client.in_flight} requests are under way, at most {self._capacity} "
                "may be.",
                status=429,
                type="overloaded_error",
                code="overloaded",
                retry_after=self._retry_after(excess),
            )

    def check_request(self, request: EngineRequest, ready: EngineReady) -> None:
        """Can the engine serve this request at all? Raises :class:`RequestError` 400."""
        limits = Limits(
            vocab_size=ready.vocab_size,
            max_model_len=ready.max_model_len,
            max_kv_tokens=ready.num_blocks * ready.block_size,
        )
        if (error := check(request, limits)) is not None:
            raise request_error(error)

    def _retry_after(self, excess: int) -> float:
        """Seconds until ``excess`` sequences have ended, at the rate at which they did of late."""
        rate = self._client.completion_rate()
        return 1.0 if rate is None else min(max(1.0, math.ceil(excess / rate)), MAX_RETRY_AFTER)


def request_error(error: EngineError) -> RequestError:
    """The engine's error as an answer to the client."""
    status = _STATUS.get(error.code, 500)
    return RequestError(
        error.message,
        status=status,
        type="invalid_request_error" if status < 500 else "server_error",
        code=error.code,
        retry_after=_RESTART_RETRY_AFTER if error.code == "engine_restarted" else None,
    )
