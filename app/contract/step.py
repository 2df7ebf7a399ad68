"""One step: what the scheduler asks of a runner, and what comes back.

A *position* is a 0-based index into the prompt and output tokens of a sequence.
"""

from __future__ import annotations

import msgspec

from app.contract.frames import TokenLogprobs
from app.contract.request import Pooling, SamplingParams


class SlotInit(msgspec.Struct, frozen=True, kw_only=True):
    """Binds a slot to a request, in the first step that schedules it and again when it resumes after preemption.

    The slot's block tables start empty.
    """

    slot: int
    sampling: SamplingParams
    seed: int
    sample_index: int
    prompt_len: int
    stop_token_ids: list[int]
    """Every id that ends the request (EOS included unless ignored): masked out below ``min_tokens``."""
    prompt_token_ids: list[int] = []
    """Only when a penalty needs to count them."""
    output_token_ids: list[int] = []
    """Likewise: what a preempted request had generated so far."""


class ScheduledRow(msgspec.Struct, frozen=True, kw_only=True):
    """``num_tokens`` consecutive tokens of one request to compute in this step."""

    slot: int
    start: int
    """Position of the row's first token; everything before it is in the KV cache."""
    num_tokens: int
    token_ids: list[int] | None
    """Ids from the host, or None: the one token that the slot sampled last, still on the device."""
    new_block_ids: list[list[int]]
    """Entries appended to the slot's table, a list for each KV cache group: blocks, and ``NO_BLOCK`` where it keeps
    nothing."""
    logits_start: int
    """Logits are needed for the row's tokens [logits_start, num_tokens); equal to num_tokens when for none."""
    num_samples: int
    """The last ``num_samples`` of those positions are sampled: 0 for a chunk in mid-prompt, 1 usually, 1 + drafts.
    The sampled token of position p (its RNG position) is the one that will stand at p + 1."""
    logprob_targets: list[int] = []
    """Token that follows each non-sampled logits position: its logprob is reported (prompt logprobs)."""


class StepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable snapshot of one step: the same bytes for every tensor-parallel rank."""

    step: int
    slots: list[SlotInit]
    rows: list[ScheduledRow]
    num_tokens: int
    num_logit_rows: int

    @property
    def is_decode(self) -> bool:
        """Each row has one token, whose logits are wanted."""
        return self.num_tokens == len(self.rows) == self.num_logit_rows


class RowOutput(msgspec.Struct, frozen=True, kw_only=True):
    """What a runner says of one row, in the order of :attr:`StepPlan.rows`."""

    token_ids: list[int] = []
    """0 to ``num_samples`` tokens: fewer than asked means that drafts were rejected (or nothing could be sampled)."""
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    """One an element of ``logprob_targets``."""
    draft_token_ids: list[int] = []
    """Guesses for the tokens that follow, to be verified in the row's next step."""
    error: str | None = None
    """The row alone failed (non-finite logits); its neighbours are sound."""


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one step, one :class:`RowOutput` a scheduled row."""

    rows: list[RowOutput]
    replayed: bool = False
    """The step was a recording's, run as one call."""
    kernel_seconds: float = 0.0
    """Time that its kernels ran; on a GPU, that launching them took."""


class EncodeBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Whole sequences to encode at once, packed one behind the other without padding."""

    step: int
    token_ids: list[int]
    bounds: list[int]
    """Sequence i is ``token_ids[bounds[i]:bounds[i + 1]]``, never empty."""
    pooling: list[Pooling]
    """Of each sequence, likewise ``normalize``."""
    normalize: list[bool]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_sequences(self) -> int:
        return len(self.pooling)


class Encoded(msgspec.Struct, frozen=True, kw_only=True):
    """What a runner says of one sequence, see :class:`EncodeOutput`."""

    shape: tuple[int, ...] = ()
    data: bytes = b""
    dtype: str = "float32"
    error: str | None = None
    """The sequence alone failed (its numbers are not finite); its neighbours are sound."""


class EncodeResult(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one :class:`EncodeBatch`, one :class:`Encoded` a sequence."""

    sequences: list[Encoded]
    replayed: bool = False
    """The batch was a recording's, run as one call."""
    kernel_seconds: float = 0.0
    """Time that its kernels ran; on a GPU, that launching them took."""


Plan = StepPlan | EncodeBatch
"""What a runner is given to compute."""
