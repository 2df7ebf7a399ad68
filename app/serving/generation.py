"""Text generation over the engine: admission, fan-out into choices, token ids back to text."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from app.contract.frames import EngineError, EngineOutput, RequestTimings
from app.contract.request import FinishReason, GenerateRequest
from app.serving.admission import Admission, Permit, request_error
from app.serving.choice import Choice, control_stops, describe
from app.serving.engine_client import EngineClient
from app.serving.ledger import Ledger, LedgerEntry
from app.serving.mailbox import Arrival, Mailbox
from app.serving.types import ChoiceDelta, GenerationRequest, RequestRecord, TokenLogprob, Usage
from app.text.chat_template import ChatTemplate
from app.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from app.store import ModelFiles

CANCELLED = "request_cancelled"
"""Error code of a request that was cancelled by another one."""
# The engine answers a deadline itself; this much later the client no longer waits for it to.
_DEADLINE_GRACE = 2.0
_DEFAULT_PARAMS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(slots=True)
class Completion:
    """One whole choice."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    """The EOS or stop token that ended it included."""
    tokens: list[TokenLogprob] = field(default_factory=list)
    """One a token of ``token_ids``, when logprobs were asked for."""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: list[TokenLogprob] | None = None

    def add(self, delta: ChoiceDelta) -> None:
        """Appends what came next."""
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.tokens += delta.tokens
        self.finish_reason = delta.finish_reason
        self.stop_reason = delta.stop_reason


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
        """The client's, or the one drawn for it."""
        self.prompt_logprobs: list[TokenLogprob] | None = None
        """There with the first delta when asked for; the first token's logprob is None."""
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
        """Its account so far; finish reasons and error code come with the end."""
        return self._entry.record

    @property
    def ended(self) -> bool:
        """Whether all of it was read, or it was closed."""
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
                raise request_error(self._error)
            if self._entry.closed:
                raise StopAsyncIteration
            self._absorb(await self._mailbox.take())
        delta = self._deltas.popleft()
        self._entry.add_delivered(len(delta.token_ids))
        if not self._deltas and self._error is None and not self._unfinished():
            self._close()
        return delta

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def cancel(self) -> None:
        """Frees at once what the engine holds for it; its reader gets the error. Harmless when it has ended."""
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
            self._entry.add_generated(count)
            if choice.last_arrival is not None:
                self._entry.add_interval(arrival.time - choice.last_arrival, count)
            choice.last_arrival = arrival.time
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


class Generator:
    """The text side of the engine: one for each served model.

    Args:
        generation_config: the model's own, for :attr:`default_params`.
        max_num_seqs, max_queue: sequences that run, and that may wait, at once.
    """

    def __init__(
        self,
        client: EngineClient,
        tokenizer: Tokenizer,
        ledger: Ledger,
        *,
        chat_template: ChatTemplate | None = None,
        generation_config: Mapping[str, Any] | None = None,
        max_num_seqs: int,
        max_queue: int,
    ) -> None:
        self.client = client
        self.tokenizer = tokenizer
        self.ledger = ledger
        self.chat_template = chat_template or ChatTemplate(None)
        self.default_params = sampling_defaults(generation_config or {})
        """Fields of :class:`SamplingParams` that the model's makers recommend; a request's own win."""
        self.capacity = max_num_seqs + max_queue
        """Sequences that are admitted at once."""
        self._admission = Admission(client, max_num_seqs=max_num_seqs, max_queue=max_queue)

    @classmethod
    def for_model(
        cls,
        files: ModelFiles,
        client: EngineClient,
        ledger: Ledger,
        *,
        max_num_seqs: int,
        max_queue: int,
    ) -> Self:
        """With the tokenizer, template and defaults that came with a model.

        Raises:
            TokenizerError: the tokenizer cannot be used.
        """
        tokenizer = Tokenizer.load(
            files.tokenizer_file,
            add_bos=files.add_bos,
            bos_token=files.bos_token,
            eos_token=files.eos_token,
            pad_token=files.pad_token,
        )
        chat_template = ChatTemplate(files.chat_template, special_tokens=files.special_tokens)
        chat_template.prepare(tokenizer)
        return cls(
            client,
            tokenizer,
            ledger,
            chat_template=chat_template,
            generation_config=files.generation_config,
            max_num_seqs=max_num_seqs,
            max_queue=max_queue,
        )

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and answer together. Raises :class:`RequestError` 503 before the first start."""
        ready = self.client.ready or self.client.check_available()
        return min(ready.info.max_model_len, ready.max_kv_tokens)

    @property
    def vocab_size(self) -> int:
        """Ids that the model's logits have. Raises :class:`RequestError` 503 before the first start."""
        return (self.client.ready or self.client.check_available()).info.vocab_size

    def remaining_tokens(self, prompt_len: int) -> int:
        """The largest ``max_tokens`` that fits behind a prompt; 0 when not even the prompt does."""
        return max(0, self.max_model_len - prompt_len)

    @contextlib.contextmanager
    def permit(self, request_id: str, *, endpoint: str, n: int = 1) -> Iterator[Permit]:
        """Room for a request of ``n`` sequences, which it holds while its prompts are rendered and tokenised.

        However many long prompts come at once, no more are worked on than can be admitted, and none of those is refused
        for lack of room. What :meth:`submit` did not use is given back when the block is left; a request that ends
        by then is written in the ledger as refused.

        Args:
            endpoint: the route's template, for metrics and log.

        Raises:
            RequestError: 503 (no engine), 429 (full), 400 (more than ever fits).
        """
        with self.ledger.refusing(request_id, endpoint), self._admission.permit(n) as permit:
            yield permit

    def submit(
        self, permit: Permit, requests: Sequence[GenerationRequest], *, endpoint: str, stream: bool
    ) -> list[Generation]:
        """Sends the prompts of a client's request to the engine: all of them, or none.

        Room is not asked for again: the permit has it, even when the server has begun to drain since.

        Args:
            endpoint: the route's template, for metrics and log.
            stream: whether the client reads along, for the log.

        Raises:
            RequestError: 503 (no engine any more), 400 (cannot be served), 504 (no time left).
            ValueError: the permit is for fewer sequences, or was used before.
        """
        arrival = time.monotonic()
        sequences = [
            self._admission.sequences(request, arrival, tuple(control_stops(request.params, self.tokenizer)))
            for request in requests
        ]
        choices = [
            [Choice(index, request.params, self.tokenizer) for index in range(request.n)] for request in requests
        ]
        self.client.check_running()
        permit.use(sum(map(len, sequences)))
        return [
            Generation(
                request,
                each,
                request_choices,
                client=self.client,
                mailbox=self.client.submit(each),
                tokenizer=self.tokenizer,
                entry=self.ledger.open(request, endpoint=endpoint, stream=stream, arrival=arrival),
            )
            for request, each, request_choices in zip(requests, sequences, choices, strict=True)
        ]

    async def start(self, request: GenerationRequest, *, endpoint: str, stream: bool) -> Generation:
        """Asks for room and submits one prompt that is encoded already. Raises as :meth:`permit` and :meth:`submit`."""
        with self.permit(request.request_id, endpoint=endpoint, n=request.n) as permit:
            (generation,) = self.submit(permit, [request], endpoint=endpoint, stream=stream)
        return generation


def sampling_defaults(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of :class:`SamplingParams` that a model's ``generation_config.json`` sets.

    ``do_sample: false`` without a temperature is the library default of those files, not a wish for greedy answers.
    """
    return {name: value for name in _DEFAULT_PARAMS if (value := generation_config.get(name)) is not None}
