"""One request as the engine thread sees it: its tokens, how far they are computed, what it holds."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from app.contract.frames import RequestTimings, TokenLogprobs
from app.contract.request import FinishReason, GenerateRequest, RequestStatus
from app.engine.kv.table import BlockTable


class Request:
    """Mutable state of one sequence. Only the engine thread touches it.

    Tokens run through three counts: ``num_computed_tokens`` (in the KV cache once the steps in flight are done) chases
    ``num_tokens``, the known tokens plus the ``num_pending`` ones that steps in flight are sampling.
    """

    def __init__(self, source: GenerateRequest, sequence: int, eos_token_ids: Collection[int]) -> None:
        self.request_id = source.request_id
        self.client_index = source.client_index
        self.sampling = source.sampling
        self.seed = source.seed
        self.sample_index = source.sample_index
        self.priority = source.priority
        self.deadline = source.deadline
        self.cache_salt = source.cache_salt
        self.arrival_time = source.arrival_time
        self.order = (source.priority, source.arrival_time, sequence)
        """Sorts requests by who goes first; a preempted request keeps its place."""

        self.token_ids = list(source.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.max_num_tokens = self.num_prompt_tokens + source.sampling.max_tokens
        eos = () if source.sampling.ignore_eos else eos_token_ids
        self.stop_token_ids = frozenset((*eos, *source.sampling.stop_token_ids))

        self.status = RequestStatus.WAITING
        self.num_computed_tokens = 0
        self.num_pending = 0
        self.draft_token_ids: list[int] = []
        """Guesses that its next row verifies."""
        self.has_drafter = False
        """Its last row brought drafts. It is not run ahead then: its next row waits for what becomes of this one."""
        self.epoch = 0
        """Bumped by whatever voids the rows in flight: preemption, a roll-back."""

        self.slot: int | None = None
        self.tables: list[BlockTable] = []
        """Its blocks, a table for each KV group; none while it waits."""
        self.block_hashes: list[bytes] = []
        """Chained hashes of its full blocks of known tokens, as far as they were needed."""
        self.num_published_blocks = 0
        self.parting = 0
        """A position at which a row has to end, for what is left there: prefixes part behind it."""

        self.num_cached_tokens = 0
        self.prompt_logprobs: list[TokenLogprobs] = []
        self.first_scheduled: float | None = None
        self.first_token: float | None = None
        self.finished: float | None = None

    @property
    def num_tokens(self) -> int:
        """Known tokens and those being sampled."""
        return len(self.token_ids) + self.num_pending

    @property
    def num_output_tokens(self) -> int:
        """Generated tokens that are known."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Prompt logprobs are still to be computed; they go out with the first token."""
        return self.sampling.prompt_logprobs is not None and self.num_output_tokens == 0 and self.num_pending == 0

    @property
    def num_schedulable_tokens(self) -> int:
        """Tokens that a step could compute now, drafts not counted; 0 while it must wait for a step in flight."""
        num_tokens = self.num_tokens
        if (self.has_drafter and self.num_pending) or num_tokens >= self.max_num_tokens:
            return 0
        return self.up_to_parting(self.num_computed_tokens, num_tokens - self.num_computed_tokens)

    def up_to_parting(self, start: int, num_tokens: int) -> int:
        """How many of ``num_tokens`` from position ``start`` on a row may have: none goes past :attr:`parting`."""
        return min(num_tokens, self.parting - start) if start < self.parting else num_tokens

    def rewind(self, num_computed_tokens: int) -> None:
        """Goes back to ``num_computed_tokens``; whatever rows are still in flight no longer count."""
        self.epoch += 1
        self.num_computed_tokens = num_computed_tokens
        self.num_pending = 0
        self.draft_token_ids = []

    def append(self, token_ids: Sequence[int]) -> tuple[list[int], FinishReason | None]:
        """Takes sampled tokens up to the one that ends the request; returns those taken and why it ended, if it did."""
        taken: list[int] = []
        for token_id in token_ids:
            taken.append(token_id)
            self.token_ids.append(token_id)
            if token_id in self.stop_token_ids:
                return taken, FinishReason.STOP
            if len(self.token_ids) >= self.max_num_tokens:
                return taken, FinishReason.LENGTH
        return taken, None

    def timings(self) -> RequestTimings:
        """Instants known so far."""
        return RequestTimings(self.arrival_time, self.first_scheduled, self.first_token, self.finished)
