"""The choices of one request while they grow: the engine's outputs become text, usage and logprobs."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from app.contract.frames import EngineError, EngineOutput, RequestTimings
from app.contract.request import FinishReason, GenerateRequest
from app.errors import RequestError
from app.serving.admission import request_error
from app.serving.choice import Choice, describe
from app.serving.engine_client import EngineClient
from app.serving.ledger import LedgerEntry
from app.serving.mailbox import Arrival, Mailbox
from app.serving.types import ChoiceDelta, GenerationRequest, RequestRecord, TokenLogprob, Usage
from app.text.parsers.reply import Reasoning, ToolCall, WholePart, add_part
from app.text.tokenizer import Tokenizer

CANCELLED = "request_cancelled"
"""Error code of a request that was cancelled by another one."""
_DEADLINE_GRACE = 2.0
"""Seconds after a deadline in which the engine may still answer it itself."""


@dataclass(slots=True)
class Completion:
    """One whole choice."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    """Token ids of the choice, with the EOS or stop token that ended it."""
    tokens: list[TokenLogprob] = field(default_factory=list)
    """Log-probabilities, one a token of ``token_ids``, when they were asked for."""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    parts: list[WholePart] = field(default_factory=list)
    """What the answer is made of, in its order; ``text`` is its content alone."""

    def add(self, delta: ChoiceDelta) -> None:
        """Appends the choice's next delta."""
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.tokens += delta.tokens
        self.finish_reason = delta.finish_reason
        self.stop_reason = delta.stop_reason
        for part in delta.reply:
            add_part(self.parts, part)

    @property
    def reasoning(self) -> str:
        """The model's thought."""
        return "".join(part.text for part in self.parts if isinstance(part, Reasoning))

    @property
    def calls(self) -> list[ToolCall]:
        """The tools that the model calls."""
        return [part for part in self.parts if isinstance(part, ToolCall)]


class Generation:
    """The choices of one request as they grow: an async iterator of :class:`ChoiceDelta`, choices interleaved.

    Use it as ``async with generation:``; leaving the block aborts in the engine whatever has not finished. Outputs
    that wait are merged, one delta a choice, so a reader that falls behind catches up.

    Raises (from the iterator):
        RequestError: the engine gave up on the request. What was generated before comes first.
    """

    def __init__(
        self,
        request: GenerationRequest,
        sequences: Sequence[GenerateRequest],
        choices: Sequence[Choice],
        *,
        client: EngineClient,
        mailbox: Mailbox[EngineOutput],
        tokenizer: Tokenizer,
        entry: LedgerEntry,
    ) -> None:
        self.request = request
        self.seed = sequences[0].seed
        """Seed of the sampling: the client's, or the one drawn for the request."""
        self.prompt_logprobs: list[TokenLogprob] | None = None
        """Log-probabilities of the prompt, when asked for; set with the first delta. The first token's is None."""
        self._client = client
        self._mailbox = mailbox
        self._tokenizer = tokenizer
        self._entry = entry
        self._choices = {sequence.request_id: choice for sequence, choice in zip(sequences, choices, strict=True)}
        self._deltas: deque[ChoiceDelta] = deque()
        self._error: EngineError | None = None
        self._watchdog = self._watch_deadline(sequences[0])

    @property
    def record(self) -> RequestRecord:
        """The request's record so far. Finish reasons and error code are set at its end."""
        return self._entry.record

    @property
    def sequence_ids(self) -> tuple[str, ...]:
        """Ids by which the engine knows the choices."""
        return tuple(self._choices)

    @property
    def ended(self) -> bool:
        """Whether the generation was read to its end, or closed."""
        return self._entry.closed

    @property
    def cancelled(self) -> bool:
        """Whether :meth:`cancel` ended it."""
        return self._error is not None and self._error.code == CANCELLED

    @property
    def usage(self) -> Usage:
        """Tokens of the prompt and tokens delivered so far, all choices together."""
        return self._entry.usage

    @property
    def generated_tokens(self) -> int:
        """Tokens that came from the engine, those past a stop match included."""
        return self._entry.record.generated_tokens

    @property
    def timings(self) -> RequestTimings | None:
        """Instants in the engine of the first choice; None before its first output."""
        return self._entry.record.timings

    async def collect(self) -> list[Completion]:
        """Reads to the end and returns the whole choices, by index."""
        completions = [Completion(choice.index) for choice in self._choices.values()]
        async with self:
            async for delta in self:
                completions[delta.index].add(delta)
        for completion in completions:
            completion.prompt_logprobs = self.prompt_logprobs
        return completions

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChoiceDelta:
        while not self._deltas:
            if self._error is not None:
                self._close(self._error.code)
                raise self._request_error(self._error)
            if self._entry.closed:
                raise StopAsyncIteration
            self._absorb(await self._mailbox.take())
        delta = self._deltas.popleft()
        self._entry.add_delivered(len(delta.token_ids), delta.reasoning_tokens)
        if not self._deltas and self._error is None and not self._unfinished():
            self._close()
        return delta

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _request_error(self, error: EngineError) -> RequestError:
        raised = request_error(error)
        if error.code == "invalid_constraint":
            raised.param = self.request.constraint_name
        return raised

    def cancel(self) -> None:
        """Ends the request: the engine frees what it holds, and the reader gets an error. Harmless after the end."""
        if self._entry.closed or self._error is not None:
            return
        unfinished = self._unfinished()
        if unfinished:
            self._client.abort(unfinished)
            self._error = EngineError(CANCELLED, "The request was cancelled.")
            self._mailbox.put(
                EngineOutput(request_id=unfinished[0], finish_reason=FinishReason.ERROR, error=self._error)
            )

    async def aclose(self) -> None:
        """Ends the request: aborts in the engine what has not finished. Harmless when all has."""
        self._deltas.clear()
        self._close(CANCELLED if self.cancelled else None)

    def _absorb(self, arrivals: Sequence[Arrival[EngineOutput]]) -> None:
        touched: dict[int, Choice] = {}
        for arrival in arrivals:
            output = arrival.output
            choice = self._choices[output.request_id]
            self._account(choice, arrival)
            if output.error is not None:
                self._error = self._error or output.error
                continue
            if output.prompt_logprobs is not None:
                self.prompt_logprobs = self._describe_prompt(output)
            choice.push(output)
            touched[choice.index] = choice
            if choice.finish_reason is not None and output.finish_reason is None:
                self._client.abort([output.request_id])  # a stop string: the engine does not know of it
        self._deltas.extend(delta for choice in touched.values() if (delta := choice.take()) is not None)

    def _account(self, choice: Choice, arrival: Arrival[EngineOutput]) -> None:
        output = arrival.output
        if count := len(output.new_token_ids):
            self._entry.add_generated(count, choice.index)
            if choice.last_arrival is not None:
                self._entry.add_interval(arrival.time - choice.last_arrival, count)
            choice.last_arrival = arrival.time
        if output.num_drafts:
            tried, right = choice.drafts
            self.usage.draft_tokens += output.num_drafts - tried
            self.usage.accepted_draft_tokens += output.num_right_drafts - right
            choice.drafts = (output.num_drafts, output.num_right_drafts)
        if choice.index == 0:
            if output.timings is not None:
                self._entry.note_timings(output.timings)
            self.usage.cached_tokens = max(self.usage.cached_tokens, output.num_cached_tokens)

    def _describe_prompt(self, output: EngineOutput) -> list[TokenLogprob]:
        first = self.request.prompt_token_ids[0]
        tokenizer = self._tokenizer
        head = TokenLogprob(first, tokenizer.token_text(first), tokenizer.token_bytes(first), None)
        return [head, *(describe(tokenizer, logprob) for logprob in output.prompt_logprobs or ())]

    def _unfinished(self) -> list[str]:
        return [request_id for request_id, choice in self._choices.items() if choice.finish_reason is None]

    def _close(self, error_code: str | None = None) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._client.abort(self._unfinished())
        cut = FinishReason.ABORT if error_code in (None, CANCELLED) else FinishReason.ERROR
        self._entry.close([choice.finish_reason or cut for choice in self._choices.values()], error_code)

    def _watch_deadline(self, sequence: GenerateRequest) -> asyncio.TimerHandle | None:
        if sequence.deadline is None:
            return None
        error = EngineError("deadline_exceeded", "The request was not done when its time was up.")
        output = EngineOutput(request_id=sequence.request_id, finish_reason=FinishReason.ERROR, error=error)
        delay = sequence.deadline - time.monotonic() + _DEADLINE_GRACE
        return asyncio.get_running_loop().call_later(delay, self._mailbox.put, output)
