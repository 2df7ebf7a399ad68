"""One request as the engine thread sees it: its tokens, how far they are computed, what it holds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from app.contract.frames import RequestTimings, TokenLogprobs
from app.contract.request import FinishReason, GenerateRequest, RequestStatus
from app.engine.adapters import LoadedAdapter
from app.engine.constraints.base import TokenConstraint
from app.engine.kv.table import BlockTable

if TYPE_CHECKING:
    from app.engine.drafts.desk import Drafting


class Request:
    """Mutable state of one sequence. Only the engine thread touches it.

    Tokens run through three counts: ``num_computed_tokens`` (in the KV cache once the steps in flight are done) chases
    ``num_tokens``, the known tokens plus the ``num_pending`` ones that steps in flight are sampling.
    """

    def __init__(
        self,
        source: GenerateRequest,
        number: int,
        eos_token_ids: Collection[int],
        adapter: LoadedAdapter | None = None,
    ) -> None:
        """
        Args:
            number: requests that the engine took before this one.
            eos_token_ids: tokens that end the request, unless it ignores them.
            adapter: the adapter that answers it; None: the model itself does.
        """
        self.request_id = source.request_id
        self.client_index = source.client_index
        self.sampling = source.sampling
        self.seed = source.seed
        self.sample_index = source.sample_index
        self.priority = source.priority
        self.deadline = source.deadline
        self.cache_salt = source.cache_salt
        self.adapter = adapter
        self.arrival_time = source.arrival_time
        self.order = (source.priority, source.arrival_time, number)
        """Sorts requests by who goes first; a preempted request keeps its place."""

        self.token_ids = list(source.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.max_num_tokens = self.num_prompt_tokens + source.sampling.max_tokens
        self.is_constrained = bool(source.constraint)
        """Whether a grammar binds what is generated."""
        self.constraint: TokenConstraint | None = None
        """Where the request stands in its grammar; None before that is compiled."""
        self.constraints_ahead: list[TokenConstraint] = []
        """Where it would stand behind each of the drafts."""
        self.untold: list[int] = []
        """Generated tokens that wait to go out with the next ones: those that a grammar begins with."""
        # A grammar says where an answer may end: nothing is to come after that.
        eos = () if source.sampling.ignore_eos and not self.is_constrained else eos_token_ids
        self.stop_token_ids = frozenset((*eos, *source.sampling.stop_token_ids))

        self.status = RequestStatus.WAITING
        self.num_computed_tokens = 0
        self.num_pending = 0
        self.draft_token_ids: list[int] = []
        """Guesses for the tokens that follow; the next row verifies them."""
        self.has_drafter = False
        """Whether there were drafts for the next row, which then waits for the last one's result."""
        self.drafting: Drafting | None = None
        """What its drafts are made of; None where the engine makes none for it."""
        self.prediction_token_ids = source.prediction_token_ids
        self.num_drafts = 0
        """Drafts that were verified."""
        self.num_right_drafts = 0
        """Those of them that were right."""
        self.epoch = 0
        """Counts preemptions and roll-backs: the rows in flight at each of them are void."""

        self.slot: int | None = None
        """The runner's slot that the request is bound to; None while it waits."""
        self.tables: list[BlockTable] = []
        """A block table for each KV group; none while the request waits."""
        self.block_hashes: list[bytes] = []
        """Chained hashes of the full blocks of known tokens, as far as they were needed."""
        self.num_published_blocks = 0
        """Blocks from the first on that have been offered to the prefix cache."""
        self.num_restorable: int | None = None
        """Blocks that may still be restored from the prefix cache's tiers before it starts; None: not looked up yet."""
        self.parting = 0
        """Position at which a row has to end, so that its state is left there: other prefixes part from this one."""

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
        """Whether prompt logprobs are still to be computed; they go out with the first token."""
        return self.sampling.prompt_logprobs is not None and self.num_output_tokens == 0 and self.num_pending == 0

    @property
    def has_penalties(self) -> bool:
        """Whether what was sampled changes what is sampled next, beside what the model makes of it."""
        params = self.sampling
        return (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1.0, 0.0, 0.0)

    @property
    def takes_forced(self) -> bool:
        """Whether tokens that a grammar forces are taken without being sampled: not where their log-probabilities are
        wanted, where penalties count what was sampled, or where tokens are biased or banned by id."""
        params = self.sampling
        return not (
            params.logprobs is not None
            or params.prompt_logprobs is not None
            or params.logit_bias
            or params.allowed_token_ids
            or self.has_penalties
        )

    @property
    def num_schedulable_tokens(self) -> int:
        """Tokens that a step could compute now, drafts not counted; 0 while it must wait for a step in flight."""
        num_tokens = self.num_tokens
        waits = self.num_pending and (self.has_drafter or self.is_constrained)
        if waits or num_tokens >= self.max_num_tokens:
            return 0
        return self.up_to_parting(self.num_computed_tokens, num_tokens - self.num_computed_tokens)

    def up_to_parting(self, start: int, num_tokens: int) -> int:
        """Tokens that a row from position ``start`` on may have, of ``num_tokens``: it ends at :attr:`parting`."""
        return min(num_tokens, self.parting - start) if start < self.parting else num_tokens

    def rewind(self, num_computed_tokens: int) -> None:
        """Goes back to ``num_computed_tokens``; rows that are still in flight no longer count."""
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
        """The request's instants that are known so far."""
        return RequestTimings(self.arrival_time, self.first_scheduled, self.first_token, self.finished)
