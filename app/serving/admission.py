"""Who may send work to the engine. Everything is checked before anything is sent."""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import msgspec

from app.contract.frames import EngineError
from app.contract.request import EncodeRequest, GenerateRequest
from app.engine.admission import Limits, check, check_encode
from app.errors import RequestError
from app.serving.engine_client import EngineClient
from app.serving.types import EncodingRequest, GenerationRequest

MAX_RETRY_AFTER = 60.0
MAX_UNSENT = 1024
"""Frames that may wait for the engine to take them. There are more only if clients come and leave while it reads
nothing: what they asked for no longer counts as under way, but is still in memory."""

# Engine error code -> HTTP status; what is not listed is the engine's fault, and trying again would not help.
_STATUS = {
    "invalid_request": 400,
    "invalid_constraint": 400,
    "adapter_not_found": 404,
    "context_length_exceeded": 400,
    "overloaded": 429,
    "slow_consumer": 408,
    "engine_restarted": 503,
    "deadline_exceeded": 504,
    "request_cancelled": 499,
}
_RETRY_AFTER = {"engine_restarted": 1.0, "overloaded": 1.0}
_serial = itertools.count()


class Permit:
    """Room for the sequences of one request: taken before its prompts are encoded, used when they are submitted.

    Made by :meth:`Admission.permit`. Leaving its ``with`` block gives back what was not used.
    """

    def __init__(self, admission: Admission, num_sequences: int) -> None:
        self._admission = admission
        self._num_sequences = num_sequences

    def use(self, num_sequences: int) -> None:
        """Gives the room over to sequences that are sent to the engine next, before anything is awaited.

        Raises:
            ValueError: there are more of them than the permit is for, or it was used before.
        """
        if num_sequences > self._num_sequences:
            raise ValueError(f"{num_sequences} sequences, but a permit for {self._num_sequences}")
        self._give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._give_back()

    def _give_back(self) -> None:
        self._admission.free(self._num_sequences)
        self._num_sequences = 0


class Admission:
    """Refuses what the engine could not serve, and what it could serve only much later.

    Args:
        max_num_seqs: sequences the engine runs at once.
        max_queue: sequences that may wait beyond those.
    """

    def __init__(self, client: EngineClient, *, max_num_seqs: int, max_queue: int) -> None:
        self._client = client
        self._capacity = max_num_seqs + max_queue
        self._permitted = 0
        """Sequences of permits that are neither used nor given back."""

    def permit(self, n: int) -> Permit:
        """Takes room for ``n`` sequences, all or none.

        Raises:
            RequestError: 503 while there is no engine, 429 when the queue is full; 400 for more than ever fit.
        """
        self._client.check_available()
        if n < 1:
            raise RequestError("n must be at least 1.", param="n")
        if n > self._capacity:
            raise RequestError(f"{n} sequences exceed the {self._capacity} that this server holds at once.", param="n")
        taken = self._client.in_flight + self._permitted
        excess = taken + n - self._capacity
        if excess > 0:
            message = f"{taken} sequences are under way, at most {self._capacity} may be"
            raise _overloaded(message, self._retry_after(excess))
        if self._client.unsent > max(MAX_UNSENT, self._capacity):
            raise _overloaded("the engine is late in reading what it was sent", 1.0)
        self._permitted += n
        return Permit(self, n)

    def free(self, n: int) -> None:
        """Gives back room for ``n`` sequences; :class:`Permit` calls it."""
        self._permitted -= n

    def sequences(
        self, request: GenerationRequest, arrival: float, stop_token_ids: Sequence[int] = ()
    ) -> list[GenerateRequest]:
        """The engine requests of a request, one a choice, checked against what the engine can serve.

        Args:
            stop_token_ids: stop tokens besides the request's own. Ids that the model does not have are left out.

        Raises:
            RequestError: 400 when it can never be served, 503 without an engine, 504 when it has no time left.
        """
        ready = self._client.ready or self._client.check_available()
        _check_deadline(request.deadline, arrival)
        if request.n < 1:
            raise RequestError("n must be at least 1.", param="n")
        if "" in request.params.stop:
            raise RequestError("A stop string must not be empty.", param="stop")
        stops = tuple(token_id for token_id in stop_token_ids if token_id < ready.info.vocab_size)
        sequences = _fan_out(request, arrival, stops)
        limits = Limits(ready.info.vocab_size, ready.info.max_model_len, ready.max_kv_tokens)
        if (error := check(sequences[0], limits)) is not None:
            raise request_error(error)
        return sequences

    def encode_sequences(self, request: EncodingRequest, arrival: float) -> list[EncodeRequest]:
        """The engine requests of a request to encode, one an input, checked against what the engine can serve.

        Raises:
            RequestError: as :meth:`sequences`.
        """
        ready = self._client.ready or self._client.check_available()
        _check_deadline(request.deadline, arrival)
        serial = next(_serial)
        sequences = [
            EncodeRequest(
                request_id=f"{request.request_id}#{serial}-{index}",
                token_ids=token_ids,
                pooling=request.pooling,
                normalize=request.normalize,
                priority=request.priority,
                arrival_time=arrival,
                deadline=request.deadline,
            )
            for index, token_ids in enumerate(request.inputs)
        ]
        for sequence in sequences:
            if (error := check_encode(sequence, ready.info.vocab_size, ready.info.max_encode_len)) is not None:
                raise request_error(error)
        return sequences

    def _retry_after(self, excess: int) -> float:
        """Seconds until ``excess`` sequences have ended, at the rate at which they did of late."""
        rate = self._client.completion_rate()
        return 1.0 if rate is None else min(max(1.0, math.ceil(excess / rate)), MAX_RETRY_AFTER)


def _overloaded(reason: str, retry_after: float) -> RequestError:
    return RequestError(
        f"The server is overloaded: {reason}.",
        status=429,
        type="overloaded_error",
        code="overloaded",
        retry_after=retry_after,
    )


def _check_deadline(deadline: float | None, arrival: float) -> None:
    if deadline is not None and deadline <= arrival:
        raise request_error(EngineError("deadline_exceeded", "The request has no time left."))


def _fan_out(request: GenerationRequest, arrival: float, stop_token_ids: tuple[int, ...]) -> list[GenerateRequest]:
    """One engine request a choice, told apart by sample index under one seed; they share the prompt's KV blocks."""
    params = request.params
    if stop_token_ids:
        params = msgspec.structs.replace(params, stop_token_ids=(*params.stop_token_ids, *stop_token_ids))
    seed = secrets.randbits(63) if params.seed is None else params.seed
    if params.max_tokens == 0:  # nothing but the prompt's logprobs is wanted, and they come with a first token
        params = msgspec.structs.replace(params, max_tokens=1, min_tokens=0)
    serial = next(_serial)  # clients choose request ids, and may choose one twice
    return [
        GenerateRequest(
            request_id=f"{request.request_id}#{serial}-{index}",
            prompt_token_ids=request.prompt_token_ids,
            # Prompt logprobs are the same for every choice, and bar the sharing of the prompt's blocks.
            sampling=params if index == 0 else msgspec.structs.replace(params, prompt_logprobs=None),
            seed=seed,
            sample_index=index,
            priority=request.priority,
            arrival_time=arrival,
            deadline=request.deadline,
            cache_salt=request.cache_salt,
            prediction_token_ids=request.prediction_token_ids,
            adapter=request.adapter,
            constraint=request.constraint,
        )
        for index in range(request.n)
    ]


def request_error(error: EngineError) -> RequestError:
    """The engine's error as an answer to the client."""
    status = _STATUS.get(error.code, 500)
    kind = "invalid_request_error" if status < 500 else "server_error"
    return RequestError(
        error.message,
        status=status,
        type="overloaded_error" if error.code == "overloaded" else kind,
        code=error.code,
        retry_after=_RETRY_AFTER.get(error.code),
    )
