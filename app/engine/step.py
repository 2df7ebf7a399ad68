"""A step of rows: filled under a budget, then in flight until its results are in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from app.contract.step import ScheduledRow, SlotInit, StepPlan
from app.engine.kv.manager import BlockRef, Ending
from app.engine.kv.table import BlockTable
from app.engine.request import Request


class PlannedRow(NamedTuple):
    """A row of a step."""

    request: Request
    row: ScheduledRow
    epoch: int
    """The request's epoch when the row was planned; the row's result counts only while the two are equal."""


class Publication(NamedTuple):
    """A block that was published before the step that writes it has run."""

    ref: BlockRef
    request: Request
    """The request whose row writes the block."""
    epoch: int
    """The request's epoch when the row was planned."""


class Hold(NamedTuple):
    """Blocks and slot of a request that has left, kept until its last step is collected."""

    tables: list[BlockTable]
    """Block table of each KV group."""
    slot: int
    ending: Ending | None = None
    """What the request leaves to be copied; None: nothing."""


@dataclass(eq=False, slots=True)
class Step:
    """A scheduled step, and what is freed or withdrawn when it ends."""

    id: int
    rows: list[PlannedRow] = field(default_factory=list)
    slots: list[SlotInit] = field(default_factory=list)
    """Slots that the step binds to requests."""
    published: list[Publication] = field(default_factory=list)
    """Blocks that are withdrawn if the step fails."""
    holds: list[Hold] = field(default_factory=list)
    """Blocks and slots that become free when the step is collected."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return sum(planned.row.num_tokens for planned in self.rows)

    @property
    def is_decode(self) -> bool:
        """Whether each row computes nothing but the tokens whose logits it samples."""
        return all(planned.row.num_tokens == planned.row.num_samples for planned in self.rows)

    def snapshot(self) -> StepPlan:
        """The step as the runner is given it."""
        rows = [planned.row for planned in self.rows]
        return StepPlan(
            step=self.id,
            slots=self.slots,
            rows=rows,
            num_tokens=self.num_tokens,
            num_logit_rows=sum(row.num_tokens - row.logits_start for row in rows),
        )


class Budget:
    """Tokens and rows of logits that are left of a step while it is being filled."""

    def __init__(self, tokens: int, logit_rows: int, *, num_rows: int, num_decodes: int, max_chunk: int) -> None:
        self.tokens = tokens
        """Tokens that are left."""
        self.max_chunk = max_chunk
        """Tokens of a row, at most."""
        self.logit_rows = logit_rows
        """Rows of logits that are left."""
        self.num_rows = num_rows
        """Rows of running requests that there may be."""
        self.num_drafts = 0
        """Drafts in the step."""
        self.num_expected = 0.0
        """Those of them that are expected to be right."""
        self.reserved = num_decodes
        """Decode rows still to come; one token and one row of logits are kept for each."""

    def chunk(self, request: Request, wanted: int) -> int:
        """How many of the ``wanted`` tokens of ``request`` this step can take."""
        num_tokens = min(wanted, self.tokens - self.reserved, self.max_chunk)
        logit_rows = self.logit_rows - self.reserved
        if request.wants_prompt_logprobs:
            num_tokens = min(num_tokens, logit_rows)
        elif num_tokens == wanted and logit_rows < 1:
            num_tokens -= 1  # everything but the position that is sampled
        return max(0, num_tokens)

    def drafts(self, request: Request) -> list[int]:
        """The request's first drafts, as many as can be verified along with its last token."""
        room = min(
            min(self.tokens - self.reserved, self.max_chunk) - 1,
            self.logit_rows - self.reserved - 1,
            request.max_num_tokens - request.num_tokens - 1,
        )
        return request.draft_token_ids[: max(0, room)]

    def spend(self, row: ScheduledRow) -> None:
        """Takes off a row's tokens and rows of logits."""
        self.tokens -= row.num_tokens
        self.logit_rows -= row.num_tokens - row.logits_start
