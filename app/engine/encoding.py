"""The engine's side of encoding: requests in, batches to the runner, one answer a request."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from app.contract.config import EngineConfig
from app.contract.frames import EncodeOutput, EngineError
from app.contract.request import EncodeRequest, FinishReason
from app.contract.step import EncodeBatch, Encoded, EncodeResult
from app.engine.admission import check_encode
from app.engine.deadlines import Deadlines
from app.engine.encode_queue import EncodeEntry, EncodeQueue


@dataclass(frozen=True, eq=False, slots=True)
class EncodeStep:
    """A batch of sequences to encode, under way."""

    id: int
    entries: list[EncodeEntry]

    @property
    def num_tokens(self) -> int:
        """Tokens that the batch computes."""
        return sum(entry.num_tokens for entry in self.entries)

    def snapshot(self) -> EncodeBatch:
        """The batch as the runner is given it."""
        token_ids: list[int] = []
        bounds = [0]
        for entry in self.entries:
            token_ids += entry.source.token_ids
            bounds.append(len(token_ids))
        return EncodeBatch(
            step=self.id,
            token_ids=token_ids,
            bounds=bounds,
            pooling=[entry.source.pooling for entry in self.entries],
            normalize=[entry.source.normalize for entry in self.entries],
        )


class EncodingCore:
    """Requests to encode from their arrival to their answer. Nothing a request carries makes a method raise.

    Args:
        max_len: tokens of the longest sequence; 0: the model does not encode, and every request is refused.
    """

    def __init__(self, config: EngineConfig, *, vocab_size: int, max_len: int, clock: Callable[[], float]) -> None:
        self._vocab_size = vocab_size
        self._max_len = max_len
        self._clock = clock
        budget = max(config.max_num_batched_tokens, max_len)
        self._queue = EncodeQueue(budget, config.max_queued_encode_tokens)
        self._entries: dict[str, EncodeEntry] = {}
        self._deadlines = Deadlines()
        self._outputs: dict[int, list[EncodeOutput]] = {}
        self._num_received = 0
        self._num_batches = 0
        self.num_tokens = 0
        """Tokens of sequences that were encoded."""

    def __len__(self) -> int:
        """Requests that have not been answered."""
        return len(self._entries)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._entries

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for their batch."""
        return len(self._queue)

    @property
    def num_running(self) -> int:
        """Sequences of the batches under way that are still wanted."""
        return len(self._entries) - len(self._queue)

    @property
    def has_outputs(self) -> bool:
        """Whether answers wait to be taken."""
        return bool(self._outputs)

    # -- requests -----------------------------------------------------------------------------------------------

    def add(self, source: EncodeRequest) -> None:
        """Takes a request whose id is not in use, or answers it with an error."""
        error = check_encode(source, self._vocab_size, self._max_len)
        if error is None and not self._queue.has_room(len(source.token_ids)):
            error = EngineError("overloaded", f"{self._queue.num_tokens} tokens wait to be encoded already")
        if error is not None:
            self.reject(source.request_id, source.client_index, error)
            return
        entry = EncodeEntry(source, (source.priority, source.arrival_time, self._num_received))
        self._num_received += 1
        self._entries[source.request_id] = entry
        if source.deadline is not None:
            self._deadlines.watch(source.request_id, source.deadline)
        self._queue.add(entry)

    def reject(self, request_id: str, client_index: int, error: EngineError) -> None:
        """Answers a request that was not taken."""
        output = EncodeOutput(request_id=request_id, finish_reason=FinishReason.ERROR, error=error)
        self._outputs.setdefault(client_index, []).append(output)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Ends requests; each is confirmed by an output that says so. Unknown ids are ignored."""
        gone = [entry for request_id in request_ids if (entry := self._entries.get(request_id)) is not None]
        gone = list(dict.fromkeys(gone))
        self._queue.discard(gone)
        for entry in gone:
            self._finish(entry, FinishReason.ABORT)

    def expire(self, now: float) -> None:
        """Ends the requests whose deadline has passed."""
        if not self._entries:
            return
        late = [self._entries[request_id] for request_id in self._deadlines.pop_expired(now)]
        self._queue.discard(late)
        error = EngineError("deadline_exceeded", "the deadline passed before the request was done")
        for entry in late:
            self._finish(entry, FinishReason.ERROR, error)

    # -- batches ------------------------------------------------------------------------------------------------

    def schedule(self, now: float) -> EncodeStep | None:
        """The next batch; None when nothing waits."""
        entries = self._queue.take()
        if not entries:
            return None
        for entry in entries:
            entry.first_scheduled = now
        self._num_batches += 1
        return EncodeStep(self._num_batches, entries)

    def finish(self, step: EncodeStep, result: EncodeResult) -> None:
        """Answers a batch's requests, but for those that have been answered meanwhile."""
        for entry, encoded in zip(step.entries, result.sequences, strict=True):
            self.num_tokens += entry.num_tokens
            if entry.ended:
                continue
            if encoded.error is not None:
                self._finish(entry, FinishReason.ERROR, EngineError("engine_error", encoded.error))
            else:
                self._finish(entry, FinishReason.STOP, encoded=encoded)

    def fail(self, step: EncodeStep, message: str) -> None:
        """Ends the requests of a batch that could not be computed."""
        for entry in step.entries:
            if not entry.ended:
                self._finish(entry, FinishReason.ERROR, EngineError("engine_error", message))

    def take_outputs(self) -> dict[int, list[EncodeOutput]]:
        """Answers since the last call, by client index."""
        outputs, self._outputs = self._outputs, {}
        return outputs

    def _finish(
        self,
        entry: EncodeEntry,
        reason: FinishReason,
        error: EngineError | None = None,
        encoded: Encoded | None = None,
    ) -> None:
        request_id = entry.source.request_id
        entry.ended = True
        del self._entries[request_id]
        self._deadlines.forget(request_id)
        result = encoded or Encoded(dtype="")
        output = EncodeOutput(
            request_id=request_id,
            dtype=result.dtype,
            shape=result.shape,
            data=result.data,
            finish_reason=reason,
            error=error,
            timings=entry.timings(self._clock()),
        )
        self._outputs.setdefault(entry.source.client_index, []).append(output)
