"""Encoding over the engine: admission, fan-out into sequences, their results as bytes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence

from app.contract.frames import EncodeOutput, EngineError
from app.contract.request import EncodeRequest, FinishReason
from app.serving.admission import Admission, Permit, request_error
from app.serving.engine_client import EngineClient
from app.serving.ledger import Ledger, LedgerEntry
from app.serving.mailbox import Mailbox
from app.serving.types import EncodingRequest

_DEADLINE_GRACE = 2.0
"""Seconds after a deadline in which the engine may still answer it itself."""


class Encoding:
    """The results of one request to encode.

    Use it as ``outputs = await encoding.collect()``, once; a caller that is cancelled aborts in the engine whatever has
    not finished.
    """

    def __init__(
        self,
        sequences: Sequence[EncodeRequest],
        *,
        client: EngineClient,
        mailbox: Mailbox[EncodeOutput],
        entry: LedgerEntry,
    ) -> None:
        self._sequences = sequences
        self._client = client
        self._mailbox = mailbox
        self._entry = entry

    @property
    def num_tokens(self) -> int:
        """Tokens of all inputs."""
        return self._entry.usage.prompt_tokens

    async def collect(self) -> list[EncodeOutput]:
        """The results, in the order of the inputs.

        Raises:
            RequestError: the engine gave up on one of them; the others are aborted.
        """
        error = EngineError("deadline_exceeded", "The request was not done when its time was up.")
        deadline = self._sequences[0].deadline
        seconds = None if deadline is None else deadline - time.monotonic() + _DEADLINE_GRACE
        outputs: dict[str, EncodeOutput] = {}
        code: str | None = None
        reason = FinishReason.ABORT
        try:
            async with asyncio.timeout(seconds):
                while len(outputs) < len(self._sequences):
                    for _, output in await self._mailbox.take():
                        if output.error is not None:
                            code, reason = output.error.code, FinishReason.ERROR
                            raise request_error(output.error)
                        outputs[output.request_id] = output
            reason = FinishReason.STOP
        except TimeoutError:
            code, reason = error.code, FinishReason.ERROR
            raise request_error(error) from None
        finally:
            ids = [sequence.request_id for sequence in self._sequences]
            self._client.abort(request_id for request_id in ids if request_id not in outputs)
            first = outputs.get(ids[0])
            if first is not None and first.timings is not None:
                self._entry.note_timings(first.timings)
            self._entry.close([FinishReason.STOP if request_id in outputs else reason for request_id in ids], code)
        return [outputs[request_id] for request_id in ids]


class Encoder:
    """The engine of a model that encodes.

    Args:
        max_num_seqs, max_queue: sequences that are admitted at once, both together.
    """

    def __init__(self, client: EngineClient, ledger: Ledger, *, max_num_seqs: int, max_queue: int) -> None:
        self.client = client
        self.ledger = ledger
        self._admission = Admission(client, max_num_seqs=max_num_seqs, max_queue=max_queue)

    @contextlib.contextmanager
    def permit(self, request_id: str, *, endpoint: str, n: int) -> Iterator[Permit]:
        """Room for a request of ``n`` inputs while they are tokenised; see
        :meth:`app.serving.generator.Generator.permit`."""
        with self.ledger.refusing(request_id, endpoint), self._admission.permit(n) as permit:
            yield permit

    def submit(self, permit: Permit, request: EncodingRequest, *, endpoint: str) -> Encoding:
        """Sends a request to the engine, all its inputs or none; :meth:`Encoding.collect` must follow.

        Args:
            endpoint: the route's template, for metrics and log.

        Raises:
            RequestError: 503 (no engine any more), 400 (cannot be encoded), 504 (no time left).
            ValueError: the permit is for fewer inputs, or was used before.
        """
        arrival = time.monotonic()
        sequences = self._admission.encode_sequences(request, arrival)
        self.client.check_running()
        permit.use(len(sequences))
        return Encoding(
            sequences,
            client=self.client,
            mailbox=self.client.submit(sequences),
            entry=self.ledger.open_encoding(request, endpoint=endpoint, arrival=arrival),
        )

    async def encode(self, request: EncodingRequest, *, endpoint: str) -> list[EncodeOutput]:
        """Asks for room, submits inputs that are tokenised already, and gives the results in their order.

        Raises:
            RequestError: as :meth:`permit`, :meth:`submit` and :meth:`Encoding.collect`.
        """
        with self.permit(request.request_id, endpoint=endpoint, n=len(request.inputs)) as permit:
            encoding = self.submit(permit, request, endpoint=endpoint)
        return await encoding.collect()
